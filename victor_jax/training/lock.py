"""A run folder belongs to one run at a time, until its process ends, however it ends.

The operating system's lock on `DIR/lock` says so at once on one machine, and dies with its process. Shared folders do
not always carry such locks between hosts: there the file's heartbeat tells a live owner from a dead one.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError

BEAT_SECONDS = 5.0
MISSED = 4  # beats without which an owner on another host is dead


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """For the first process of a run: one sentence where another run has the folder."""
    try:
        file = (workdir / "lock").open("a+")
    except OSError as error:
        raise UserError(f"{workdir / 'lock'} cannot be written ({error.strerror}): give another --workdir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(workdir, _owner(file)) from None
        except OSError:  # a file system without locks: the heartbeat alone decides
            pass
        owner = _owner(file)
        if owner.get("host", socket.gethostname()) != socket.gethostname() and _beats(file):
            raise _taken(workdir, owner)
        _write(file, {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T")})
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(file.fileno(), ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            _write(file, {})


def _taken(workdir: Path, owner: dict[str, Any]) -> UserError:
    who = f"process {owner.get('process')} on {owner.get('host')}, since {owner.get('since')}" if owner else "another"
    return UserError(f"{workdir} belongs to a run that is at work ({who}): wait for its end, or give another --workdir")


def _owner(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except (ValueError, TypeError, RecursionError):  # empty, cut short, or nothing of ours
        return {}


def _write(file: Any, owner: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(owner) if owner else "")
    file.flush()


def _beats(file: Any) -> bool:
    """Whether somebody still touches the file. Clocks are not compared, since those of hosts differ."""
    before, limit = os.stat(file.name).st_mtime_ns, time.monotonic() + MISSED * BEAT_SECONDS
    while time.monotonic() < limit:
        time.sleep(BEAT_SECONDS / 5)
        if os.stat(file.name).st_mtime_ns != before:
            return True
    return False


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        os.utime(descriptor)
