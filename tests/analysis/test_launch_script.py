"""What scripts/launch_tpu.sh would ask of gcloud, and how a host goes round after a crash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "launch_tpu.sh"
RENTED = {"NAME": "victor", "ZONE": "a-zone", "TYPE": "v5litepod-64", "BUCKET": "", "DRY_RUN": "1"}


def launch(*arguments, cwd=None, **environment):
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=cwd or SCRIPT.parents[1],
        env=os.environ | RENTED | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("kind", "image"),
    [("v4-64", "tpu-ubuntu2204-base"), ("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v6e-64", "v2-alpha-tpuv6e")],
)
def test_each_kind_of_tpu_is_created_with_its_own_image(kind, image):
    said = launch("create", "--spot", TYPE=kind).stdout
    assert f"--accelerator-type={kind} --runtime-version={image} --spot" in said


def test_arguments_reach_every_host_as_they_are(tmp_path):
    """Through two shells: ours, and the one that gcloud starts there."""
    given = ["--config=configs/finetune.py:registers=8,layer=3", "--workdir=bucket/a run", "--config.data.path=it's"]
    said = launch("run", *given).stdout
    assert "--worker=all" in said
    remote = subprocess.run(["bash", "-c", f"printf '%s' {said.split(maxsplit=6)[6].rsplit(' --zone', 1)[0]}"],
                            capture_output=True, text=True).stdout  # fmt: skip
    there = remote.removeprefix("--command=").partition("attempts ")[2].partition(">> train.log")[0]
    words = subprocess.run(["bash", "-c", f"printf '%s\n' {there}"], capture_output=True, text=True).stdout
    assert words.splitlines() == given


@pytest.mark.parametrize(("missing", "said"), [("NAME", "NAME is not set"), ("ZONE", "ZONE is not set")])
def test_what_is_missing_is_named(missing, said):
    done = launch("create", **{missing: ""})
    assert done.returncode == 2
    assert said in done.stderr


@pytest.fixture
def host(tmp_path):
    """A host's folder, where train.py does what a test says."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)

    def write(code):
        (tmp_path / "train.py").write_text(f"import pathlib, sys, time\nruns = pathlib.Path('runs')\n{code}")
        return tmp_path

    return write


COUNT = "number = len(runs.read_text()) if runs.exists() else 0\nruns.write_text('x' * (number + 1))\n"


@pytest.mark.parametrize(
    ("code", "runs", "status"),
    [
        ("sys.exit(1 if number < 2 else 0)", 3, 0),  # two crashes, then the end
        ("sys.exit(2)", 1, 2),  # a mistake of the user's
        ("sys.exit(130)", 1, 130),  # interrupted
        ("import os; os.abort()", 4, 134),  # what jax does where another process was killed
        ("sys.exit(1)", 4, 1),  # nothing but crashes
    ],
)
def test_a_host_begins_again_after_a_crash_and_only_then(host, code, runs, status):
    folder = host(COUNT + code)
    done = launch("attempts", cwd=folder, RESTARTS="3", PAUSE="0")
    assert (len((folder / "runs").read_text()), done.returncode) == (runs, status)


def test_a_host_that_is_told_to_stop_does_not_begin_again(host):
    folder = host(COUNT + "time.sleep(60)")
    with subprocess.Popen([SCRIPT, "attempts"], cwd=folder, stdout=subprocess.DEVNULL) as loop:
        try:
            until(lambda: (folder / "runs").exists())
            pid = int((folder / "train.pid").read_text())
            second = launch("attempts", cwd=folder)
            assert "runs already" in second.stderr
            os.kill(pid, signal.SIGTERM)
            assert loop.wait(timeout=30) == 143
        finally:
            loop.kill()
    assert (folder / "runs").read_text() == "x"


def until(happened):
    for _ in range(300):
        if happened():
            return
        time.sleep(0.1)
    raise TimeoutError
