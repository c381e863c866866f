"""The processes of one run: they join by flags, or as jax finds them on a TPU pod, GKE, SLURM or Open MPI; they tell
each other what only one of them knows; and they end together.

Processes talk through the key-value store of jax's coordinator (in process 0), which needs no device: it works while
devices wait for each other in a collective.
"""

import contextlib
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # its key-value store has no public name
from jax.experimental import multihost_utils

from victor_jax.errors import UserError, join_names

GRACE_SECONDS = 600  # jax kills the process at its own timeout, without a word to us: ours must come first
HEARTBEAT_SECONDS = 60  # after which a process that was killed is missed, and jax aborts the others; 100 by default
POLL_SECONDS = 0.1  # between two looks for a value that a process waits for
WATCH_SECONDS = 1  # and for a failure, which hundreds of processes do all the time
LEAVE_SECONDS = 8  # in which all processes must have read why the run ends
END_SECONDS = 24 * 3600  # that the first process to finish waits for the last one
FAILURE = "failure"  # the key of the first failure: [process, sentence, exit status]

_agreements = itertools.count()


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, timeout: int = 300
) -> Iterator[None]:
    """Joins the processes, before anything touches a device; without flags and without a cluster this one is alone.

    The body ends on all of them alike. An error in one ends the others within seconds, wherever they wait: each prints
    the sentence of the first failure and exits with its status.
    """
    if processes != 1 and not jax.distributed.is_initialized():
        _check_flags(coordinator, processes, process_id)
        _join(coordinator, processes, process_id, timeout)
    if global_state.num_processes == 1:
        _introduce()
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watcher.start()
    try:
        _introduce()
        yield
        _store().wait_at_barrier("end", END_SECONDS * 1000)
    except BaseException as error:
        _tell(error)
    else:
        ended.set()
    watcher.join()  # after an error it ends this process, as it does the others


def _introduce() -> None:
    local, device = jax.local_device_count(), jax.devices()[0]
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {local} of {jax.device_count()} devices, "
        f"{device.device_kind}",
        flush=True,
    )


def _tell(error: BaseException) -> None:
    """Makes the error the reason why all processes end, if none has failed before."""
    sentence, status = str(error), 2
    if isinstance(error, KeyboardInterrupt):
        sentence, status = "it was interrupted", 130
    elif not isinstance(error, UserError):
        traceback.print_exception(error)
        sentence, status = f"{type(error).__name__}: {sentence.splitlines()[0] if sentence else ''}", 1
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one, or no coordinator any more
        _store().key_value_set(FAILURE, json.dumps([global_state.process_id, sentence, status]))


def _watch(ended: threading.Event) -> None:
    """Ends this process when one has failed. The main thread may wait in a collective that will never come to an end,
    which no exception can reach."""
    failure = None
    while failure is None:
        if ended.wait(WATCH_SECONDS):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # where the coordinator is gone, jax aborts this process
            failure = _value(FAILURE)
    process, sentence, status = json.loads(failure)
    print(f"error: process {process} of {global_state.num_processes}: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # one was killed, or is stuck
        _store().wait_at_barrier("leave", LEAVE_SECONDS * 1000)
    if global_state.process_id == 0:
        time.sleep(1)  # jax aborts a process whose coordinator goes first
    os._exit(status)


def _check_flags(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    if process_id is not None and processes is not None and not 0 <= process_id < processes:
        raise UserError(f"--process_id={process_id} is none of --processes={processes}: they count from 0")
    host, _, port = (coordinator or "").rpartition(":")
    if coordinator is not None and not (host and port.isdigit()):
        raise UserError(f"--coordinator={coordinator} needs the form HOST:PORT, with the host of process 0")
    if coordinator is None or process_id != 0:
        return
    with socket.socket() as probe:  # jax dies of a signal where the port is taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port} ({error.strerror}): choose another") from error


def _join(coordinator: str | None, processes: int | None, process_id: int | None, timeout: int) -> None:
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                initialization_timeout=timeout + GRACE_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:
            failed.append(error)

    # In a thread, since jax answers a timeout by aborting the whole process.
    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(timeout)
    if joining.is_alive():
        who = "this process" if None in (processes, process_id) else f"process {process_id} of {processes}"
        where = f"at {coordinator}" if coordinator else "in the cluster that jax detected"
        raise UserError(
            f"{who} waited {timeout} s for the others {where}: start the same command on every host, with the same "
            f"number of processes, and open the coordinator's port between them (TPU pods where the firewall closes "
            f"jax's own 8482: --coordinator=IP_OF_HOST_0:8476); --processes=1 runs this process alone"
        )
    if failed:
        is_alone = (coordinator, processes, process_id) == (None, None, None)
        if is_alone and isinstance(failed[0], ValueError) and "coordinator_address" in str(failed[0]):
            return  # no cluster that jax knows
        raise UserError(
            f"jax could not find the processes of this run by itself ({failed[0]}): give --coordinator, --processes "
            f"and --process_id, all three, or --processes=1 to run this process alone"
        ) from failed[0]


def agreed(value: Any) -> Any:
    """Process 0's value, a JSON value, on all processes. What is decided by looking at a shared folder must be agreed:
    each host may see another state of it. To be called on all processes, in the same order."""
    if jax.process_count() == 1:
        return value
    key = f"agreed/{next(_agreements)}"
    if jax.process_index() == 0:
        send(key, value)
    return json.loads(_wait(key))


def send(key: str, value: Any) -> None:
    """Leaves a JSON value for another process."""
    _store().key_value_set(key, json.dumps(value))


def receive(key: str) -> Any:
    """Waits for what another process sends under this key, and takes it."""
    text = _wait(key)
    _store().key_value_delete(key)
    return json.loads(text)


def _wait(key: str) -> str:
    while (text := _value(key)) is None:
        time.sleep(POLL_SECONDS)  # not in jax, where no signal would be heard
    return text


def _store() -> Any:
    return global_state.client


def _value(key: str) -> str | None:
    try:
        return _store().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("NOT_FOUND"):
            raise
        return None


def gather(value: list[Any]) -> list[list[Any]]:
    """A list of JSON values from each process. To be called on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    return [json.loads(one.tobytes()) for one in texts]


def check_shared(folder: Path) -> None:
    """That all hosts see the same folder."""
    if jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    number = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    probe = folder / f".shared-{number}"
    if jax.process_index() == 0:
        probe.write_text("")
    multihost_utils.sync_global_devices("probe written")
    sees = np.asarray(multihost_utils.process_allgather(np.bool_(probe.exists())))
    if jax.process_index() == 0:
        probe.unlink()
    if not sees.all():
        blind = [str(process) for process in np.flatnonzero(~sees)]
        raise UserError(
            f"{folder} is not one folder for all hosts: process {join_names(blind)} does not see what process 0 "
            f"writes there; use a shared file system or a mounted bucket"
        )
