"""Checkpoints: what is saved comes back bit by bit on any mesh, kills and signals cost nothing that was written.

Run as a script, this file is a small training run that a test kills, stops and starts again.
"""

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import victor_jax
from victor_jax.errors import UserError
from victor_jax.sharding.distributed import joined
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training.checkpoints import Checkpoints
from victor_jax.training.checksums import checksums
from victor_jax.training.optimizer import make_optimizer, update
from victor_jax.training.settings import OptimizerSettings
from victor_jax.training.step import State

SETTINGS = OptimizerSettings(1e-3, 2e-3, 0.03, True, 0.1, 0.9, 0.999, 1e-8, 1.0, "float32")
SHAPES = {
    "language/stages_0_0/attention/q/kernel": (2, 16, 8),
    "language/stages_0_0/attention/q/bias": (2, 8),
    "language/stages_1_0/mlp/down/kernel": (3, 16, 16),
    "projector/linear_1/kernel": (64, 64),
    "compression/registers": (8, 16),
}
SPECS = {(2, 16, 8): (None, "fsdp", "tensor"), (3, 16, 16): (None, "tensor", "fsdp"), (64, 64): ("fsdp", "tensor")}
SECONDS = 120


def params_of(dtype: str = "float32", count: int = len(SHAPES)) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in list(SHAPES.items())[-count:]}


def optimizer_of(params: dict[str, jax.Array]) -> optax.GradientTransformation:
    return make_optimizer(SETTINGS, params)


def begin(params: dict[str, jax.Array]) -> State:
    return State(params, optimizer_of(params).init(params), jnp.zeros((), jnp.float32))


def advance(state: State) -> State:
    """A step whose gradients depend on the parameters alone, as in a run that is a function of its start."""
    grads = {path: jnp.sin(leaf) for path, leaf in state.train.items()}
    train, moments = update(optimizer_of(state.train), grads, state.optimizer, state.train, jnp.float32(1e-3))
    return State(train, moments, state.loss_average * 0.9 + 0.1)


def on(mesh: Mesh, state: State) -> State:
    """Shapes of the state, and where each leaf goes: moments lie like their parameters."""

    def place(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*SPECS.get(leaf.shape, ())))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, state)


def shardings(mesh: Mesh, state: State) -> State:
    return jax.tree.map(lambda leaf: leaf.sharding, on(mesh, state))


def advance_on(mesh: Mesh, state: State) -> State:
    return jax.jit(advance, out_shardings=shardings(mesh, state))(jax.device_put(state, shardings(mesh, state)))


def assert_same(found: State, expected: State) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_comes_back_bit_by_bit_on_other_meshes(tmp_path: Path, dtype: str) -> None:
    eight, one = make_mesh(data=1, fsdp=8), make_mesh(devices=jax.devices()[:1])
    expected = advance_on(eight, begin(params_of(dtype)))
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        checkpoints.save(1, expected, {})
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        alone = checkpoints.restore(1, on(one, expected))
        checkpoints.save(2, alone, {})
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        mesh = make_mesh(fsdp=2, tensor=4)
        found = checkpoints.restore(2, on(mesh, expected))
    assert_same(alone, expected)
    assert_same(found, expected)
    kernel = found.train["language/stages_0_0/attention/q/kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 2)}
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in jax.tree.leaves(found))
    assert_same(advance_on(one, found), advance_on(one, alone))


def test_what_is_saved_is_the_state_at_the_call_though_the_next_step_takes_its_buffers(tmp_path: Path) -> None:
    mesh = make_mesh(fsdp=8)
    state = jax.device_put(begin(params_of()), shardings(mesh, begin(params_of())))
    step = jax.jit(advance, donate_argnums=0, out_shardings=shardings(mesh, state))
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        expected = {}
        for number in range(1, 4):
            state = step(state)
            expected[number] = jax.tree.map(lambda leaf: np.array(leaf), state)
            checkpoints.save(number, state, {})
            for _ in range(5):
                state = step(state)
        checkpoints.wait()
        for number, then in expected.items():
            assert_same(checkpoints.restore(number, state), then)


def test_meta_comes_back(tmp_path: Path) -> None:
    meta = {"compression": "victor:registers=8,layer=3", "step": 3, "versions": {"jax": jax.__version__}}
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(3, begin(params_of()), meta)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert {key: value for key, value in checkpoints.meta(3).items() if key != "checksums"} == meta


def test_the_last_ones_and_every_so_manyth_are_kept(tmp_path: Path) -> None:
    state = begin({"compression/registers": jnp.ones((2, 2))})
    with Checkpoints(tmp_path, keep_last=2, keep_every=8) as checkpoints:
        for step in [*range(2, 24, 2), 23]:
            checkpoints.save(step, state, {})
    with Checkpoints(tmp_path, keep_last=2, keep_every=8) as checkpoints:
        assert sorted(int(folder.name) for folder in tmp_path.iterdir()) == [8, 16, 22, 23]
        assert checkpoints.latest() == 23


def test_a_state_that_does_not_fit_is_one_sentence_with_every_difference(tmp_path: Path) -> None:
    state = begin(params_of())
    other = dict(params_of())
    other["projector/linear_2/kernel"] = other.pop("projector/linear_1/kernel")
    other["compression/registers"] = jnp.zeros((4, 16))
    other["language/stages_0_0/attention/q/bias"] = jnp.zeros((2, 8), jnp.bfloat16)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state, {})
        with pytest.raises(UserError) as error:
            checkpoints.restore(1, begin(other))
    message = str(error.value)
    assert "not in the checkpoint: projector/linear_2/kernel" in message
    assert "not in this run: projector/linear_1/kernel" in message
    assert "registers (checkpoint float32[8, 16], run float32[4, 16])" in message
    assert "q/bias (checkpoint float32[2, 8], run bfloat16[2, 8])" in message
    assert "mu/projector/linear_2/kernel" in message
    assert "\n" not in message


def test_a_step_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    state = begin({"compression/registers": jnp.ones((8, 16))})  # one leaf: Orbax leaves other reads dangling
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    shutil.rmtree(tmp_path / "1" / "optimizer")
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        with pytest.raises(UserError, match=r"checkpoint 1 in .* cannot be read \(optimizer is missing\)"):
            checkpoints.restore(1, state)
        for file in (tmp_path / "2" / "params" / "d").iterdir():
            os.truncate(file, 10)
        with pytest.raises(UserError, match=r"checkpoint 2 in .* cannot be read") as error:
            checkpoints.restore(2, state)
    assert len(str(error.value)) < 600


def flip(folder: Path) -> None:
    """One bit in the middle of the largest file: of a value, not of Orbax's own records."""
    file = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    for file in (folder / "d").iterdir():
        os.truncate(file, 10)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    r"params/projector/linear_1/kernel": lambda step: flip(step / "params"),
    r"optimizer is missing": lambda step: shutil.rmtree(step / "optimizer"),
    r".*OUT_OF_RANGE.*|.*[Nn]ot enough.*|.*Corrupt.*|.*DATA_LOSS.*": lambda step: truncate(step / "params"),
    r".*Expecting value.*": lambda step: (step / "meta" / "metadata").write_text("cut"),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_a_damaged_step_is_set_aside_for_the_one_before(tmp_path: Path, why: str) -> None:
    state = begin({"projector/linear_1/kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)))})
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, {"bad_rows": [step]})
    DAMAGE[why](tmp_path / "3")
    seen: list[dict[str, Any]] = []
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        with pytest.warns(UserWarning, match=rf"3 is damaged \(({why})\): set aside"):
            step, found, meta = checkpoints.newest(state, seen.append)
        assert (step, meta["bad_rows"], [meta["bad_rows"] for meta in seen][-1]) == (2, [2], [2])
        assert len(seen) == 1 if "Expecting" in why else 2, "what is refused is asked of each step"
        assert_same(found, state)
        checkpoints.save(3, state, {})
    assert {folder.name for folder in tmp_path.iterdir()} == {"1", "2", "3", "3.damaged"}


def test_a_run_whose_steps_are_all_damaged_says_so_before_it_begins_anew(tmp_path: Path) -> None:
    state = begin({"compression/registers": jnp.ones((8, 16))})
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {})
    (tmp_path / "1.damaged").mkdir()
    for step in "12":
        shutil.rmtree(tmp_path / step / "optimizer")
    with (
        Checkpoints(tmp_path, keep_last=3) as checkpoints,
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(UserError, match=r"no checkpoint in .* can be read, all are set aside"),
    ):
        checkpoints.newest(state, lambda meta: None)
    assert {folder.name for folder in tmp_path.iterdir()} == {"1.damaged", "2.damaged"}
    assert (tmp_path / "1.damaged" / "params").exists()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("PERMISSION_DENIED: Error opening"), UserError),
        (OSError(24, "Too many open files"), UserError),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), jax.errors.JaxRuntimeError),
    ],
)
def test_a_whole_step_that_cannot_be_read_now_stays_where_it_is(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    state = begin({"compression/registers": jnp.ones((8, 16))})
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        with mock.patch.object(ocp.Checkpointer, "restore", side_effect=error), pytest.raises(raised):
            checkpoints.newest(state, lambda meta: None)
        assert checkpoints.newest(state, lambda meta: None) is not None


def test_without_a_step_there_is_no_newest(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.newest(begin(params_of()), lambda meta: None) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_checksum_is_the_same_on_every_mesh_and_changes_with_every_bit_and_place(dtype: str) -> None:
    array = np.random.default_rng(0).integers(-100, 100, (8, 24)).astype(dtype)
    plain = int(checksums({"x": jnp.asarray(array)})["x"])
    cut = jax.device_put(array, NamedSharding(make_mesh(fsdp=4, tensor=2), PartitionSpec("fsdp", "tensor")))
    assert int(checksums({"x": cut})["x"]) == plain
    other = array.copy()
    other.view(f"uint{8 * other.itemsize}")[5, 7] ^= 1
    swapped = array[[1, 0, *range(2, 8)]]
    assert plain not in (int(checksums({"x": jnp.asarray(changed)})["x"]) for changed in (other, swapped))


# --- runs in processes of their own


def child(folder: Path, total: int, every: int, process: tuple[int, int] | None = None) -> subprocess.Popen:
    """A run of this file; `process` is its id and the port, where there are two."""
    environment = os.environ | {"PYTHONPATH": str(Path(victor_jax.__file__).parents[1])}
    command = [sys.executable, "-W", "error", __file__, str(folder), str(total), str(every), *map(str, process or ())]
    log = folder / f"{process[0] if process else 0}.log"
    with log.open("a") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def said(run: subprocess.Popen, wanted: str, limit: int | None = None) -> list[str]:
    """Its lines up to one that begins with `wanted` (or the end), and `limit` such lines."""
    lines: list[str] = []
    for line in run.stdout or ():
        lines.append(line.strip())
        if line.startswith(wanted) and (limit is None or len(lines) >= limit):
            break
    return lines


def ended(run: subprocess.Popen) -> list[str]:
    try:
        out, _ = run.communicate(timeout=SECONDS)
    finally:
        run.kill()
    return out.splitlines()


def digest_of(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("end"))


def test_a_run_killed_again_and_again_while_it_saves_ends_like_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    total, resumed = 16, []
    rng = random.Random(0)
    for _ in range(3):
        run = child(tmp_path / "killed", total, every=1)
        lines = said(run, "step", limit=4)
        time.sleep(rng.uniform(0, 0.1))  # somewhere within a save: they follow each other without a break
        run.send_signal(signal.SIGKILL)
        run.communicate()
        resumed.append(int(lines[0].removeprefix("resumed ")))
    last = ended(child(tmp_path / "killed", total, every=1))
    resumed.append(int(last[0].removeprefix("resumed ")))
    assert resumed[0] == 0
    assert resumed == sorted(set(resumed)), "a start went on from no later step than the one before"
    assert resumed[-1] < total
    assert digest_of(last) == digest_of(ended(child(tmp_path / "whole", total, every=total)))
    assert (tmp_path / "killed" / "0.log").read_text() == ""
    assert not [path for path in (tmp_path / "killed" / "steps").iterdir() if "tmp" in path.name]


def test_sigterm_saves_the_step_at_hand_and_the_next_start_goes_on_from_it(tmp_path: Path) -> None:
    run = child(tmp_path, 100_000, every=0)
    said(run, "step", limit=4)
    run.send_signal(signal.SIGTERM)
    lines = ended(run)
    assert run.returncode == 0
    left = int(next(line for line in lines if line.startswith("left")).removeprefix("left after "))
    again = ended(child(tmp_path, left + 2, every=0))
    assert again[:2] == [f"resumed {left}", f"step {left + 1}"]


def both(folders: tuple[Path, Path], total: int) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [child(folder, total, 0, (process, port)) for process, folder in enumerate(folders)]


def test_two_processes_with_a_folder_each_are_told_so(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    for process, run in enumerate(both(folders, 3)):
        ended(run)
        assert run.returncode == 2
        assert "process 1 does not see what process 0 writes" in (folders[process] / f"{process}.log").read_text()


def test_two_processes_save_the_same_step_at_sigterm_and_step_back_together_from_a_damaged_one(tmp_path: Path) -> None:
    runs = both((tmp_path, tmp_path), 100_000)
    said(runs[0], "step", limit=5)
    runs[0].send_signal(signal.SIGTERM)
    lines = [ended(run) for run in runs]
    logs = "\n".join((tmp_path / f"{process}.log").read_text() for process in (0, 1))
    assert [run.returncode for run in runs] == [0, 0], logs
    left = [next(line for line in said if line.startswith("left")) for said in lines]
    assert left[0] == left[1]
    step = int(left[0].removeprefix("left after "))
    again = [ended(run) for run in both((tmp_path, tmp_path), step + 3)]
    for lines in again:
        assert f"resumed {step}" in lines
        assert f"step {step + 1}" in lines
    assert digest_of(again[0]) == digest_of(again[1])
    # What the second process wrote of the newest step is lost, and only that process reads it.
    for file in (tmp_path / "steps" / str(step + 3) / "params" / "ocdbt.process_1" / "d").iterdir():
        os.truncate(file, 10)
    once_more = [ended(run) for run in both((tmp_path, tmp_path), step + 3)]
    for lines in once_more:
        assert f"resumed {step}" in lines
        assert digest_of(lines) == digest_of(again[0])
    assert (tmp_path / "steps" / f"{step + 3}.damaged").exists()


def main(folder: str, total: int, every: int, process: int | None = None, port: int | None = None) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    if process is None:
        run(folder, total, every)
    else:
        with joined(f"localhost:{port}", 2, process):
            run(folder, total, every)


def run(folder: str, total: int, every: int) -> None:
    mesh = make_mesh(fsdp=jax.device_count())
    state = begin(params_of(count=2))
    places = shardings(mesh, state)
    state = jax.jit(lambda: state, out_shardings=places)()
    step_of = jax.jit(advance, donate_argnums=0, out_shardings=places)
    with Checkpoints(Path(folder) / "steps", keep_last=2) as checkpoints:
        warnings.simplefilter("ignore", UserWarning)  # of a damaged step
        done = 0
        if saved := checkpoints.newest(on(mesh, state), lambda meta: None):
            done, state, _ = saved
        print(f"resumed {done}", flush=True)
        for step in range(done + 1, total + 1):
            state = step_of(state)
            leaving = checkpoints.reached_preemption(step)
            if leaving or step == total or (every and step % every == 0):
                checkpoints.save(step, state, {"step": step})
            print(f"step {step}", flush=True)
            time.sleep(0.01)
            if leaving:
                print(f"left after {step}", flush=True)
                break
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
    print("end", hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
