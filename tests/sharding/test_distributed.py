"""Joining the processes of a run: by flags, as SLURM says, alone; and what a user reads when the others do not come.

Run as a script, this file is one of the processes.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import victor_jax
from victor_jax.errors import UserError
from victor_jax.sharding.distributed import start

SECONDS = 60
SLURM = {"SLURM_JOB_ID": "12", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}


def process(*flags: object, **environment: str) -> subprocess.Popen:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COORDINATOR"))}
    known |= {"PYTHONPATH": str(Path(victor_jax.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, *map(str, flags)]
    return subprocess.Popen(command, env=known | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, errors = running.communicate(timeout=SECONDS)
    finally:
        running.kill()
    return running.returncode, out, errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_without_flags_and_cluster_a_process_is_alone() -> None:
    assert ended(process("-", "-", "-", 30)) == (0, "process 0 of 1: 1 of 1 devices, cpu\n1\n", "")


def test_two_processes_join_by_flags() -> None:
    port = free_port()
    both = [process(f"localhost:{port}", 2, one, 30) for one in (0, 1)]
    for one, (code, out, errors) in enumerate(map(ended, both)):
        assert (code, out) == (0, f"process {one} of 2: 1 of 2 devices, cpu\n2\n"), errors


def test_two_processes_join_as_slurm_says() -> None:
    port = str(free_port())
    ids = [{"SLURM_PROCID": one, "SLURM_LOCALID": one, "JAX_COORDINATOR_PORT": port} for one in "01"]
    both = [process("-", "-", "-", 30, **SLURM, **one) for one in ids]
    for code, out, errors in map(ended, both):
        assert (code, out.splitlines()[-1]) == (0, "2"), errors


def test_a_host_that_does_not_come_ends_in_a_sentence_with_its_causes() -> None:
    port = free_port()
    first = process(f"localhost:{port}", 3, 0, 5)
    second = process(f"localhost:{port}", 3, 1, 4)
    lost = process(f"localhost:{free_port()}", 3, 2, 1)
    sentences = [
        (lost, "process 2 of 3 waited 1 s for the others at localhost:"),
        (second, f"process 1 of 3 waited 4 s for the others at localhost:{port}: start the same command on every host"),
        (first, f"process 0 of 3 waited 5 s for the others at localhost:{port}: start the same command on every host"),
    ]
    for running, sentence in sentences:
        code, _, errors = ended(running)
        assert code == 2, errors
        assert errors.startswith(f"error: {sentence}")
        assert "--coordinator=IP_OF_HOST_0:8476" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("somewhere", 2, 0), "HOST:PORT"),
        (("localhost:1234", 2, 2), "count from 0"),
        (("localhost:1234", 2, -1), "count from 0"),
    ],
)
def test_flags_that_cannot_be_right_are_named_at_once(flags: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(*flags)


@pytest.mark.parametrize("flags", [("-", 2, "-"), ("-", "-", 1), ("localhost:1234", "-", 1)])
def test_flags_that_need_others_name_them(flags: tuple) -> None:
    code, _, errors = ended(process(*flags, 5))
    assert code == 2
    assert errors.startswith("error: jax could not find the processes of this run by itself (")
    assert errors.endswith(
        "give --coordinator, --processes and --process_id, all three, or --processes=1 to run this process alone\n"
    )
    assert errors.count("\n") == 1


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .*: choose another"):
            start(f"localhost:{port}", 2, 0)


def main(coordinator: str, processes: str, process_id: str, timeout: str) -> int:
    import jax

    def number(flag: str) -> int | None:
        return None if flag == "-" else int(flag)

    try:
        start(None if coordinator == "-" else coordinator, number(processes), number(process_id), int(timeout))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    print(jax.process_count())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
