"""A run that cannot fit is refused from shapes alone, with what takes the memory and what to change."""

import subprocess
import time

import jax
import jax.numpy as jnp
import pytest
import small_run
from small_run import config_of

from victor_jax.data.shapes import Layout, Shape
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training import memory, settings
from victor_jax.training.memory import GIB, Capacity
from victor_jax.training.setup import abstract_part, make_run, sizes_of

SHORT, LONG = (Layout((Shape(text, images=1, visual=576),), batches=1, text=1) for text in (32, 2048))
TINY = Layout((Shape(32, images=1, visual=SIZES["small"].features_per_image),), batches=1, text=1)


def run_of(size="7b", recipe="finetune", argument="registers=8,layer=3", mesh=(1, 1, 1), **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = settings.read(config_of(changes, recipe, argument))
    devices = jax.devices()[: mesh[0] * mesh[1] * mesh[2]]
    return make_run(config, SIZES[size], make_mesh(*mesh, devices=devices), total_steps=1)


def each(gib):
    return Capacity(int(gib * GIB), is_shared=False)


def refused(run, room, layouts=()):
    with pytest.raises(UserError) as caught:
        memory.check(run, layouts, room)
    return str(caught.value)


def test_what_cannot_fit_is_refused_with_its_parts_and_what_to_change():
    """7 billion parameters, trained in full: 4 bytes each, 8 of moments, 4 of gradients summed over parts."""
    assert refused(run_of(), each(24)) == (
        "too little memory: each device would hold at least 101.3 GiB at once (optimizer 50.4 GiB, trained parameters "
        "25.2 GiB, gradients 25.2 GiB, frozen parameters 0.5 GiB), and has 24.0; try config.param_dtype=bfloat16 (12.6 "
        "GiB less), adapters (configs/finetune_lora.py) or more devices over config.mesh.fsdp (about 5)"
    )


def test_what_might_fit_is_not_refused():
    memory.check(run_of(), (), each(102))
    memory.check(run_of(mesh=(1, 8, 1)), [LONG], each(13))
    memory.check(run_of(recipe="finetune_lora"), [SHORT], each(20))


def test_gradients_of_one_part_may_be_as_narrow_as_the_arithmetic():
    assert memory.held(run_of(micro_batches=1, batch_size=8), False)["gradients"] == pytest.approx(
        memory.held(run_of(), False)["gradients"] / 2
    )


def test_every_device_of_fsdp_holds_its_share_and_data_copies_all():
    whole = sum(memory.held(run_of(), False).values())
    assert sum(memory.held(run_of(mesh=(1, 8, 1)), False).values()) == pytest.approx(whole / 8, rel=0.01)
    copied = run_of(mesh=(8, 1, 1))
    assert sum(memory.held(copied, False).values()) == pytest.approx(whole, rel=0.01)
    assert "config.mesh.data=1 with a larger config.mesh.fsdp" in refused(copied, each(24))


def test_devices_that_share_the_machines_memory_count_together():
    whole = memory.held(run_of(), False)
    assert memory.held(run_of(mesh=(1, 8, 1)), True) == whole
    assert memory.held(run_of(mesh=(8, 1, 1)), True) == whole
    assert "this machine would hold at least 101.3 GiB" in refused(run_of(), Capacity(24 * GIB, is_shared=True))


def test_long_rows_are_refused_by_what_the_layers_leave_for_the_backward_pass():
    """32 rows of 2632 positions below the cut and 2056 above, over 3 and 29 layers, 4096 wide, 2 bytes each."""
    run = run_of(recipe="finetune_lora")
    memory.check(run, (), each(26))
    message = refused(run, each(26), [SHORT, LONG])
    left = 32 * (3 * 2632 + 29 * 2056) * 4096 * 2 / GIB
    assert f"inputs of the layers {left:.1f} GiB" in message
    assert "try config.micro_batches=8, a smaller config.batch_size or config.data.max_length" in message


def test_rows_of_text_alone_leave_nothing_where_nothing_below_them_learns():
    text = Layout((Shape(2048, images=0, visual=0),), batches=1, text=1)
    assert memory.held(run_of(recipe="pretrain"), False, [text]) == memory.held(run_of(recipe="pretrain"), False)


def test_what_a_device_runs_out_of_while_it_computes_is_one_sentence():
    run = run_of("small", argument="registers=8,layer=3,runlocal")
    words = "too little memory for the step on rows of 32 text positions and 1 image:"
    with pytest.raises(UserError, match=words), memory.explained(run, TINY):
        jnp.zeros(1 << 50).block_until_ready()


def test_other_failures_of_a_step_keep_their_words():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained(run_of(), SHORT):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.fixture
def system(tmp_path):
    """A made-up /proc and /sys/fs/cgroup of a machine of 1000 kB and 100 kB of swap -> what may be filled there."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        "MemTotal:    1000 kB\nMemFree:      10 kB\nSwapTotal:    100 kB\nHugePages_Total: 0\n"
    )

    def machine(line, **limits):
        (proc / "self" / "cgroup").write_text(f"1:cpu:/\n{line}\n")
        for path, limit in limits.items():
            folder = cgroups / path.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            name = "memory.limit_in_bytes" if path.startswith("memory") else "memory.max"
            (folder / name).write_text(f"{limit}\n")
        return memory.machine_memory(proc, cgroups)

    return machine


def test_a_machine_is_as_large_as_its_memory_and_swap(system):
    assert system("0::/") == 1100 * 1024


def test_a_container_or_a_job_has_what_the_smallest_of_its_groups_may_take(system):
    assert system("0::/job/step", job__step="max", job=512000) == 512000 + 100 * 1024
    assert system("4:memory:/box", memory__box=204800) == 204800 + 100 * 1024


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
    assert done.stderr.startswith("error: too little memory: this machine would hold at least ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "sample").exists()
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_the_compiled_step_takes_no_less(kept):
    run = run_of("small", argument="registers=8,layer=3,runlocal", dtype="bfloat16", param_dtype=kept)
    batch = tuple(abstract_part(run, part) for part in TINY.parts)
    number = jax.ShapeDtypeStruct((), "int32")
    with jax.set_mesh(run.mesh):
        lowered = run.step.lower(run.state, run.frozen, batch, number, sizes=sizes_of(run, TINY.parts))
    taken = lowered.compile().memory_analysis()
    bound = sum(memory.held(run, False, [TINY]).values())
    assert taken.argument_size_in_bytes < bound <= taken.argument_size_in_bytes + taken.temp_size_in_bytes
