"""A run that cannot fit is refused from shapes alone, with what takes the memory and what to change."""

import subprocess
import time

import jax
import jax.numpy as jnp
import pytest
import small_run
from small_run import config_of

from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training import memory, settings
from victor_jax.training.memory import GIB
from victor_jax.training.setup import abstract_part, make_run, sizes_of

TINY = Shape(32, images=1, visual=SIZES["small"].features_per_image)


def run_of(size="7b", recipe="finetune", argument="registers=8,layer=3", mesh=(1, 1, 1), **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = settings.read(config_of(changes, recipe, argument))
    devices = jax.devices()[: mesh[0] * mesh[1] * mesh[2]]
    return make_run(config, SIZES[size], make_mesh(*mesh, devices=devices))


def refused(run, gib):
    with pytest.raises(UserError) as caught:
        memory.check(run, gib * GIB)
    return str(caught.value)


def test_what_cannot_fit_is_refused_with_its_parts_and_what_to_change():
    """7 billion parameters, trained in full: 4 bytes each, 8 of moments, 4 of gradients summed over parts."""
    assert refused(run_of(), 24) == (
        "too little memory: each device would hold at least 101.3 GiB at once (optimizer 50.4 GiB, trained parameters "
        "25.2 GiB, gradients 25.2 GiB, frozen parameters 0.5 GiB), and has 24.0; try "
        "config.optimizer.mu_dtype=bfloat16, config.param_dtype=bfloat16, adapters (configs/finetune_lora.py) or a "
        "machine with more memory (for a smoke test on any: --config=FILE:runlocal)"
    )


def test_what_might_fit_is_not_refused():
    memory.check(run_of(), 102 * GIB)
    memory.check(run_of(mesh=(1, 8, 1)), 13 * GIB)
    memory.check(run_of(recipe="finetune_lora"), 20 * GIB)


def test_what_is_kept_in_bfloat16_takes_half_and_gradients_are_summed_in_float32():
    wide, narrow = memory.held(run_of()), memory.held(run_of(param_dtype="bfloat16", optimizer__mu_dtype="bfloat16"))
    assert narrow["trained parameters"] == wide["trained parameters"] / 2
    assert narrow["optimizer"] == pytest.approx(wide["optimizer"] * 3 / 4)
    assert narrow["gradients"] == wide["gradients"] == wide["trained parameters"]


def test_more_parts_are_advised_against_activations_alone():
    run = run_of("small", argument="registers=8,layer=3,runlocal", batch_size=32)
    assert run.parts == 2
    assert "config.micro_batches=4" in memory.advice(run, of_step=True)
    assert "micro_batches" not in memory.advice(run, of_step=False)


def test_every_device_of_fsdp_holds_its_share_and_data_copies_all():
    whole = sum(memory.held(run_of()).values())
    assert sum(memory.held(run_of(mesh=(1, 8, 1))).values()) == pytest.approx(whole / 8, rel=0.01)
    copied = run_of(mesh=(8, 1, 1))
    assert sum(memory.held(copied).values()) == pytest.approx(whole, rel=0.01)
    assert "config.mesh.data=1 with a larger config.mesh.fsdp" in refused(copied, 24)


def test_devices_that_share_the_machines_memory_have_a_part_of_it_each():
    one, *_ = devices = jax.devices()
    assert memory.capacity(devices) == memory.capacity([one]) // len(devices)


def test_what_a_device_runs_out_of_while_it_computes_is_one_sentence():
    run = run_of("small", argument="registers=8,layer=3,runlocal")
    words = "too little memory for the step on rows of 32 text positions and 1 image:.*a smaller config.batch_size or"
    with pytest.raises(UserError, match=words), memory.explained(run, [TINY]):
        jnp.zeros(1 << 50).block_until_ready()


def test_other_failures_of_a_step_keep_their_words():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained(run_of(), [TINY]):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("file", "limit", "expected"),
    [
        ("memory.max", "max", 1100 * 1024),
        ("memory.max", "512000", 512000 + 100 * 1024),
        ("memory/memory.limit_in_bytes", "204800", 204800 + 100 * 1024),
        ("memory/memory.limit_in_bytes", "9223372036854771712", 1100 * 1024),
    ],
)
def test_a_machine_or_container_has_its_memory_and_swap(tmp_path, file, limit, expected):
    (tmp_path / "meminfo").write_text(
        "MemTotal:    1000 kB\nMemFree:      10 kB\nSwapTotal:    100 kB\nHugePages_Total: 0\n"
    )
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"{limit}\n")
    assert memory.machine_memory(tmp_path, tmp_path) == expected


def test_no_linux_no_limit(tmp_path):
    assert memory.machine_memory(tmp_path, tmp_path) is None


def test_a_model_too_large_for_this_machine_is_refused_within_seconds(tmp_path):
    """Before its data is indexed and its weights are drawn; the machine's memory is not touched."""
    large = {"size": "13b", "dtype": "float32", "mesh.fsdp": 1, "mesh.tensor": 1}  # about 200 GiB
    command = small_run.command(tmp_path / "run", large)
    begin = time.monotonic()
    done = subprocess.run([*command, "--processes=1"], env=small_run.environment(), capture_output=True, text=True)
    limit = memory.machine_memory()
    if limit is None or limit > 190 * GIB:
        pytest.skip("this machine is large")
    assert done.returncode == 2
    assert done.stderr.startswith("error: too little memory: each device would hold at least ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "sample").exists()
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_the_compiled_programs_take_no_less(kept):
    run = run_of("small", argument="registers=8,layer=3,runlocal", dtype="bfloat16", param_dtype=kept)
    part, number = abstract_part(run, TINY), jax.ShapeDtypeStruct((), "int32")
    with jax.set_mesh(run.mesh):
        sizes = sizes_of(run, TINY)
        accumulate = run.accumulate.lower(run.train, run.frozen, run.sums, part, number, number, sizes=sizes)
        update = run.update.lower(run.state, run.sums, jax.ShapeDtypeStruct((), "float32"))
    taken, beside = accumulate.compile().memory_analysis(), memory.bytes_of(run.state.optimizer)
    arguments, bound = taken.argument_size_in_bytes + beside, sum(memory.held(run).values())
    assert bound == pytest.approx(arguments, rel=0.01)
    assert bound <= arguments + taken.temp_size_in_bytes
    taken = update.compile().memory_analysis()
    assert taken.argument_size_in_bytes + memory.bytes_of(run.frozen) == pytest.approx(bound, rel=0.01)
    assert taken.alias_size_in_bytes == pytest.approx(memory.bytes_of(run.state), rel=0.01)
