"""The processes of a run: joining by flags, as SLURM says, alone; what a user reads when the others do not come; what
they agree on; and how all of them end when one fails.

Run as a script, this file is one of the processes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

import victor_jax
from victor_jax.compile_cache import use_compile_cache
from victor_jax.errors import UserError
from victor_jax.sharding import distributed
from victor_jax.sharding.distributed import joined

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
        joined(*flags).__enter__()


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
            joined(f"localhost:{port}", 2, 0).__enter__()


def two(scenario: str, **environment: str) -> list[tuple[int, str, str]]:
    """How two processes of this scenario ended."""
    port = free_port()
    return list(map(ended, [process(f"localhost:{port}", 2, one, 30, scenario, **environment) for one in (0, 1)]))


@pytest.mark.parametrize(
    ("scenario", "status", "sentence"),
    [
        ("mistake in 1", 2, "process 1 of 2: the file is empty"),
        ("crash in 0", 1, "process 0 of 2: ZeroDivisionError: division by zero"),
        ("no devices in 1", 1, "process 1 of 2: RuntimeError: the TPU is already in use"),
        ("interrupt in 1", 130, "process 1 of 2: it was interrupted"),
    ],
)
def test_a_failure_of_one_process_ends_both_alike_and_soon(scenario: str, status: int, sentence: str) -> None:
    """The other one waits in a collective, or for its devices."""
    begin = time.monotonic()
    for code, _, errors in two(scenario):
        assert code == status, errors
        assert errors.endswith(f"error: {sentence}\n")
        assert errors.count("error: ") == 1
    assert time.monotonic() - begin < 20


def test_when_all_fail_the_first_one_is_named_by_all() -> None:
    (one, _, first), (other, _, second) = two("mistake in all")
    assert (one, other) == (2, 2)
    assert first == second
    assert first.startswith("error: process ")


def test_a_killed_process_is_missed_after_the_heartbeat_limit() -> None:
    (status, _, errors), (killed, _, _) = two("killed in 1")
    assert killed == -signal.SIGKILL
    assert status not in (0, 2), "a launcher begins again"
    assert "another task died" in errors


def test_processes_joined_by_flags_agree_on_what_the_first_one_sees_and_hand_each_other_values() -> None:
    for one, (code, out, errors) in enumerate(two("talk")):
        assert code == 0, errors
        assert out.splitlines() == [
            f"process {one} of 2: 1 of 2 devices, cpu",
            "2",
            "[None, 0, ['of 0']]",
            "of 1" if one == 0 else "sent",
        ]


def test_two_processes_on_cpu_use_no_compile_cache(tmp_path: Path) -> None:
    """Neither write nor read, even where the environment asks for it: see `use_compile_cache`."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for one, (code, out, errors) in enumerate(two("compile", **cache)):
        assert code == 0, errors
        assert ("JAX_COMPILATION_CACHE_DIR is not used" in out) == (one == 0)
    assert not list(tmp_path.iterdir())


SCENARIOS = {
    "mistake": lambda: fail(UserError("the file is empty")),
    "crash": lambda: 1 / 0,
    "interrupt": lambda: fail(KeyboardInterrupt()),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def fail(error: BaseException) -> None:
    raise error


def talk(me: int) -> None:
    print(jax.process_count())
    print([distributed.agreed(None if me == 0 else 7), distributed.agreed(me), distributed.agreed([f"of {me}"])])
    if me == 1:
        distributed.send("a key", f"of {me}")
        print("sent")
    else:
        print(distributed.receive("a key"))


def act(scenario: str) -> None:
    """What this process does in the scenario: what it names, or wait for the other one."""
    what, _, who = scenario.partition(" in ")
    if what == "count":
        print(jax.process_count())
    elif what == "compile":
        use_compile_cache()
        multihost_utils.sync_global_devices("compiled")
    elif what == "talk":
        talk(jax.process_index())
    elif who in ("all", str(jax.process_index())):
        time.sleep(0.5)
        SCENARIOS[what]()
    elif what == "killed":
        time.sleep(SECONDS)
    else:
        multihost_utils.sync_global_devices("never")


def main(coordinator: str, processes: str, process_id: str, timeout: str, scenario: str = "count") -> int:
    def number(flag: str) -> int | None:
        return None if flag == "-" else int(flag)

    if scenario == f"no devices in {process_id}":
        jax.local_device_count = lambda: fail(RuntimeError("the TPU is already in use"))
    if scenario.startswith("killed"):
        distributed.HEARTBEAT_SECONDS = 2
    at = None if coordinator == "-" else coordinator
    try:
        with joined(at, number(processes), number(process_id), int(timeout)):
            act(scenario)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
