"""The processes of one run: they join by flags, or as jax finds them on a TPU pod, GKE, SLURM or Open MPI; what one
of them knows or sees, and all must."""

import json
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from victor_jax.errors import UserError, join_names

GRACE_SECONDS = 600  # jax kills the process at its own timeout, without a word to us: ours must come first


def start(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, timeout: int = 300
) -> None:
    """Before anything touches a device. Without flags and without a cluster this process is alone."""
    if processes != 1 and not jax.distributed.is_initialized():
        _check_flags(coordinator, processes, process_id)
        _join(coordinator, processes, process_id, timeout)
    local, device = jax.local_device_count(), jax.devices()[0]
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {local} of {jax.device_count()} devices, "
        f"{device.device_kind}",
        flush=True,
    )


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
                coordinator, processes, process_id, initialization_timeout=timeout + GRACE_SECONDS
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
