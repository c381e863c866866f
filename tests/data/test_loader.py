import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from llava_folder import SIZE, opened, rows_of_every_kind

from victor_jax.data.batches import BatchSource
from victor_jax.data.loader import Loader
from victor_jax.data.schedule import Schedule
from victor_jax.errors import UserError

STEPS = 9  # more than an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Row 6 names an image that is not there, row 10 has no answer."""
    rows = rows_of_every_kind(24)
    rows[6]["image"] = "nowhere.jpg"
    rows[10]["conversations"].pop()
    reader, index = opened(tmp_path_factory.mktemp("data"), rows)
    return reader, index, Schedule(index, 8, 0, registers=2, parts=2)


def source(data, host=0, hosts=1):
    reader, _, schedule = data
    return BatchSource(reader, schedule, 2, SIZE, "pad", host, hosts)


def read(source, start=0, stop=STEPS, workers=0):
    with Loader(source, start, stop, workers) as loader:
        steps = list(loader)
        return steps, loader.bad_rows


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def alone(data):
    return read(source(data))


def test_the_run_reaches_into_the_second_epoch(data, alone):
    assert data[2].steps_per_epoch < STEPS
    assert [loaded.number for loaded in alone[0]] == list(range(STEPS))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing_and_their_bad_rows_come_through(data, alone, workers):
    steps, bad = read(source(data), workers=workers)
    assert_equal(steps, alone[0])
    assert bad == alone[1]
    assert [row for row, _ in bad] == [6]
    assert "nowhere.jpg" in bad[0][1]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one(data, alone, hosts):
    of_hosts = [read(source(data, host, hosts))[0] for host in range(hosts)]
    for step, together in enumerate(alone[0]):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(steps[step].parts for steps in of_hosts))
        assert_equal(joined, together.parts)
        for steps in of_hosts:
            np.testing.assert_array_equal(steps[step].rows, together.rows)


@pytest.mark.parametrize("start", [0, 3, STEPS - 1, STEPS])
def test_a_run_goes_on_where_it_was(data, alone, start):
    assert_equal(read(source(data), start)[0], alone[0][start:])


def test_rows_that_the_index_left_out_are_listed_too(data):
    with Loader(source(data), 0, STEPS, known_bad=data[1].bad) as loader:
        assert [row for row, _ in loader.bad_rows] == [10]
        list(loader)
        assert [row for row, _ in loader.bad_rows] == [6, 10]


def test_a_row_that_is_bad_in_every_epoch_counts_once(data):
    with Loader(source(data), 0, 3 * data[2].steps_per_epoch, known_bad=data[1].bad, max_bad_rows=2) as loader:
        list(loader)
        assert len(loader.bad_rows) == 2


def test_one_bad_row_too_many_ends_the_run(data):
    with (
        Loader(source(data), 0, STEPS, known_bad=data[1].bad, max_bad_rows=1) as loader,
        pytest.raises(UserError, match=r"max_bad_rows=1 .*row 6 .*nowhere\.jpg.*row 10 "),
    ):
        list(loader)


def test_an_error_in_a_worker_reaches_the_user_as_it_is(data, tmp_path):
    reader, index = opened(tmp_path, rows_of_every_kind(24))
    its = BatchSource(reader, Schedule(index, 8, 0, registers=2), 2, SIZE, "pad")
    with (tmp_path / "data.json").open("a") as file:
        file.write(" ")
    with Loader(its, 0, 3, workers=1) as loader, pytest.raises(UserError, match="was changed while it was in use"):
        next(loader)
    assert not multiprocessing.active_children()


ENDLESS = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from llava_folder import SIZE, opened, rows_of_every_kind
from victor_jax.data.batches import BatchSource
from victor_jax.data.loader import Loader
from victor_jax.data.schedule import Schedule

if __name__ == "__main__":
    reader, index = opened(Path({folder!r}), rows_of_every_kind(24))
    source = BatchSource(reader, Schedule(index, 8, 0, registers=2), 2, SIZE, "pad")
    with Loader(source, 0, 10**9, workers=1) as loader:
        next(loader)
        print("reading", flush=True)
        for line in sys.stdin:
            print(next(loader)[0], flush=True)
"""


@pytest.fixture
def endless(tmp_path):
    """A process that reads with one worker: itself, and the worker."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        (tmp_path / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdout.readline() == "reading\n", (tmp_path / "errors.txt").read_text()
        (worker,) = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
        yield process, worker
        process.kill()


def test_workers_outlive_a_signal_to_the_whole_group_and_not_their_parent(endless):
    process, worker = endless
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    for step in range(1, 12):  # more than what was read ahead
        process.stdin.write("next\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{step}\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
