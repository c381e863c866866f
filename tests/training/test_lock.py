"""A run folder has one owner, who loses it by dying."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from victor_jax.errors import UserError
from victor_jax.training import lock

HOLD = (
    "import sys, time; from pathlib import Path; from victor_jax.training.lock import owned\n"
    "with owned(Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_start_says_who_has_the_folder(tmp_path, holder):
    words = rf"belongs to a run that is at work \(process {holder.pid} on .*since 20"
    with pytest.raises(UserError, match=words), lock.owned(tmp_path):
        pass
    assert holder.poll() is None


def test_a_killed_owner_loses_it_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    begun = time.monotonic()
    with lock.owned(tmp_path):
        assert time.monotonic() - begun < 1


def of_another_host(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "process": 5, "since": "2026-01-01 00:00:00"}))


def test_an_owner_on_another_host_is_alive_while_it_beats(tmp_path, monkeypatch):
    """Of a shared folder that carries no locks from host to host."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    of_another_host(tmp_path)
    beating = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(.1)",
            tmp_path / "lock",
        ]
    )
    try:
        with pytest.raises(UserError, match=r"process 5 on elsewhere, since 2026-01-01"), lock.owned(tmp_path):
            pass
    finally:
        beating.kill()
        beating.wait()
    with lock.owned(tmp_path):
        held = json.loads((tmp_path / "lock").read_text())
        assert held["process"] == os.getpid()


def test_the_owner_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with lock.owned(tmp_path):
        before = (tmp_path / "lock").stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / "lock").stat().st_mtime_ns > before
