"""train.py in processes of its own: killed, told to stop, two at a time."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import losses, metrics, overrides, run_here
from soak import saved

import train
import victor_jax

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    small_run.share_compile_cache(tmp_path_factory.mktemp("compiled"))
    yield
    small_run.forget_compile_cache()


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """Of a run on one device. Some images are missing; the first step has the full rate, however many follow."""
    start = small_run.write_start(tmp_path_factory.mktemp("start"))
    data = small_run.write_data(tmp_path_factory.mktemp("rows") / "data")
    for number in range(1, 40, 3):
        (data / f"{number}.png").unlink()
    changes = overrides(start, data, total_steps=STEPS, mesh__data=1, mesh__fsdp=1, optimizer__warmup_ratio=0.0)
    return changes | {"checkpoint.keep_every": 10}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, changes):
    """The undisturbed run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    small_run.run_process(workdir, changes)
    return workdir


def wait_until(reached: Callable[[], bool], child: small_run.Child) -> None:
    limit = time.monotonic() + small_run.SECONDS
    while not reached() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)


def stop(workdir: Path, steps: int, children: list[small_run.Child], logs: list[Path], told: int = 0) -> None:
    """Tells one of the processes to stop, once so many steps are logged, and sees all of them leave in peace."""
    wait_until(lambda: len(metrics(workdir)) >= steps, children[0])
    children[told].send_signal(signal.SIGTERM)
    small_run.finish(children, logs)


def newest(workdir: Path) -> int:
    """The last step that was saved; 0: none yet."""
    folders = (workdir / "checkpoints").glob("*")
    return max((int(folder.name) for folder in folders if folder.name.isdigit()), default=0)


def assert_same_end(workdir: Path, undisturbed: Path) -> None:
    small_run.assert_identical(saved(workdir, STEPS), saved(undisturbed, STEPS))
    assert losses(workdir) == losses(undisturbed)
    assert (workdir / "bad_rows.jsonl").read_text() == (undisturbed / "bad_rows.jsonl").read_text()


def test_killed_and_told_to_stop_it_ends_bit_identical(tmp_path, alone, changes):
    """Killed in its first save, told to stop, killed in a save after that: the same command goes on."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    often, rarely = (changes | {"checkpoint.every": every} for every in (1, 1000))

    def kill_when(reached: Callable[[], bool]) -> None:
        child = small_run.begin(small_run.command(workdir, often), log)
        wait_until(reached, child)
        child.kill()
        assert child.wait() == -signal.SIGKILL, log.read_text()

    kill_when(lambda: len(metrics(workdir)) > 0)
    before = len(metrics(workdir))
    child = small_run.begin(small_run.command(workdir, rarely), log)
    stop(workdir, before + 2, [child], [log])
    step = newest(workdir)
    assert before + 2 <= step < STEPS
    assert f"told to stop: step {step} is saved" in log.read_text()
    assert len(losses(workdir)) == step
    kill_when(lambda: newest(workdir) > step)
    assert f"step {newest(workdir)} of {STEPS}" in small_run.run_process(workdir, rarely)
    assert_same_end(workdir, alone)


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path, alone, changes):
    """Each holds one device and reads its own half of the rows. Among two, a signal is seen once a second."""
    workdir = tmp_path / "run"
    many = changes | {"checkpoint.every": 100_000, "total_steps": 100_000, "mesh.fsdp": 2}
    children, logs = small_run.begin_two(workdir, many)
    stop(workdir, 5, children, logs, told=1)
    step = newest(workdir)
    assert 5 <= step == len(losses(workdir)), "an epoch"
    assert f"told to stop: step {step} is saved" in logs[0].read_text()
    assert (workdir / "bad_rows.jsonl").read_text() == (alone / "bad_rows.jsonl").read_text()
    np.testing.assert_allclose(losses(workdir)[:2], losses(alone)[:2], rtol=1e-5)


def test_bad_rows_of_both_processes_count_together_and_stop_both(tmp_path, changes):
    """Thirteen images are missing, seen by one process or the other; neither sees more than ten of them."""
    few = changes | {"data.max_bad_rows": 10, "checkpoint.every": 5, "mesh.fsdp": 2}
    children, logs = small_run.begin_two(tmp_path / "run", few)
    with pytest.raises(AssertionError, match=r"^\[2, 2\]\n"):
        small_run.finish(children, logs)
    said = [[line for line in log.read_text().splitlines() if line.startswith("error: ")] for log in logs]
    assert said[0] == said[1]
    assert " of 2: more than data.max_bad_rows=10 rows cannot be used, the first are " in said[0][0]
    assert newest(tmp_path / "run") == 5, "what was trained is kept, should more be allowed"


def test_a_process_that_fails_alone_within_the_loop_ends_the_other_one_too(tmp_path, changes):
    """One of them meets its seventh missing image while the other waits for it in a step; saves are under way."""
    few = changes | {"data.max_bad_rows": 6, "checkpoint.every": 1, "mesh.fsdp": 2}
    children, logs = small_run.begin_two(tmp_path / "run", few)
    with pytest.raises(AssertionError, match=r"^\[2, 2\]\n"):
        small_run.finish(children, logs)
    for log in logs:
        assert " of 2: more than data.max_bad_rows=6 rows cannot be used" in log.read_text()


def resumable(run: Path, folder: Path) -> Path:
    """The work folder of a finished run as it was after step 10."""
    workdir = shutil.copytree(run, folder / "run")
    for step in (15, STEPS):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    shutil.rmtree(workdir / "model")
    return workdir


def test_a_host_with_an_old_view_of_the_folder_does_what_the_first_one_says(tmp_path, alone, changes):
    """It sees no step, and a model that is gone. Two processes that each believe their own eyes would train different
    steps, or wait for each other for ever. A tensor axis over both: each holds half of every matrix, and all rows."""
    workdir = resumable(alone, tmp_path)
    scripts = (train.__file__, str(small_run.ROOT / "tests" / "old_view.py"))
    small_run.finish(*small_run.begin_two(workdir, changes | {"mesh.tensor": 2}, scripts=scripts))
    assert newest(workdir) == STEPS
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    assert (workdir / "bad_rows.jsonl").read_text() == (alone / "bad_rows.jsonl").read_text()
    assert victor_jax.load(workdir / "model").compression == "victor:registers=2,layer=1"


def test_eight_devices_and_workers_go_on_where_one_device_stopped(tmp_path, alone, changes):
    workdir = resumable(alone, tmp_path)
    run_here(workdir, changes | {"mesh.data": 2, "mesh.fsdp": 4, "data.workers": 2})
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    assert losses(workdir)[:10] == losses(alone)[:10]
    assert losses(workdir)[10:] != losses(alone)[10:]
    assert [line["tokens"] for line in metrics(workdir)] == [line["tokens"] for line in metrics(alone)]


def test_a_mistake_is_one_line_and_exit_status_two(tmp_path, changes):
    command = small_run.command(tmp_path / "run", changes | {"data.images": str(tmp_path / "elsewhere")})
    done = subprocess.run(command, env=small_run.environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: the image folder {tmp_path / 'elsewhere'} does not exist\n"
