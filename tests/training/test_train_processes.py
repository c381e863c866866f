"""train.py in processes of its own: killed, told to stop, two at a time."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import losses, metrics, overrides, run_here
from soak import kill_once, saved

import train
import victor_jax

STEPS = 20
KILLS = 3


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
    return changes | {"checkpoint.every": 1, "checkpoint.keep_every": 10}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, changes):
    """The undisturbed run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    small_run.run_process(workdir, changes)
    return workdir


def stop(workdir: Path, steps: int, children: list[subprocess.Popen], logs: list[Path], told: int = 0) -> None:
    """Tells one of the processes to stop, once so many steps are logged, and sees all of them leave in peace."""
    limit = time.monotonic() + small_run.SECONDS
    while len(metrics(workdir)) < steps and children[0].poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
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


def test_killed_at_random_moments_it_ends_bit_identical(tmp_path, monkeypatch, alone, changes):
    for key, value in small_run.environment().items():
        monkeypatch.setenv(key, value)
    workdir, rng, kills = tmp_path / "run", random.Random(0), 0
    while kills < KILLS or newest(workdir) == 0:  # a kill may fall before the first save has ended
        kill = kill_once(small_run.command(workdir, changes), workdir, tmp_path / "log", rng.uniform(0, 1.5))
        assert kill is not None, "it ended before it was killed"
        kills += 1
    small_run.run_process(workdir, changes)
    assert_same_end(workdir, alone)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, alone, changes):
    workdir, log = tmp_path / "run", tmp_path / "log"
    rarely = changes | {"checkpoint.every": 1000}
    child = small_run.begin(small_run.command(workdir, rarely), log)
    stop(workdir, 2, [child], [log])
    step = newest(workdir)
    assert 2 <= step < STEPS
    assert f"told to stop: step {step} is saved" in log.read_text()
    assert len(losses(workdir)) == step
    assert f"step {step} of {STEPS}" in small_run.run_process(workdir, rarely)
    assert_same_end(workdir, alone)


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path, alone, changes):
    """Each holds one device and reads its own half of the rows. The second start is told to stop as well."""
    workdir, before = tmp_path / "run", 0
    both = changes | {"checkpoint.every": 100_000, "total_steps": 100_000, "mesh.fsdp": 2}
    for told in (1, 0):
        children, logs = small_run.begin_two(workdir, both)
        stop(workdir, before + 3, children, logs, told)
        step = newest(workdir)
        assert before + 3 <= step == len(losses(workdir))
        assert f"told to stop: step {step} is saved" in logs[0].read_text()
        before = step
    assert before >= 5, "an epoch"
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


def test_a_host_with_an_old_view_of_the_folder_does_what_the_first_one_says(tmp_path, alone, changes):
    """It sees neither the newest step nor the model. Two processes that each believe their own eyes would train
    different steps, or wait for each other for ever."""
    workdir = shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    scripts = (train.__file__, str(small_run.ROOT / "tests" / "old_view.py"))
    small_run.finish(*small_run.begin_two(workdir, changes | {"mesh.fsdp": 2}, scripts=scripts))
    assert newest(workdir) == STEPS
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


def test_two_processes_that_share_their_rows_train_like_one(tmp_path, alone, changes):
    """A tensor axis over both: each holds half of every matrix, and all rows."""
    workdir = tmp_path / "run"
    small_run.finish(*small_run.begin_two(workdir, changes | {"checkpoint.every": 50, "mesh.tensor": 2}))
    np.testing.assert_allclose(losses(workdir)[:10], losses(alone)[:10], rtol=1e-5)
    assert victor_jax.load(workdir / "model").compression == "victor:registers=2,layer=1"


def test_eight_devices_and_workers_go_on_where_one_device_stopped(tmp_path, alone, changes):
    workdir = shutil.copytree(alone, tmp_path / "run")
    for step in (STEPS - 1, STEPS):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    shutil.rmtree(workdir / "model")
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
