"""Low-rank adapters: what trains, what dropout does, and that the merged export is the trained model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from small_run import metrics, overrides, run_here
from soak import saved

from victor_jax.models.layers import Lora, is_adapter
from victor_jax.sharding.mesh import make_mesh, rows_on_mesh
from victor_jax.training import settings
from victor_jax.training.outputs import merged
from victor_jax.training.setup import (
    make_run,
    open_start,
    sizes_of,
    start_tensors,
    trained_params,
)
from victor_jax.training.step import row_losses
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.place import layers_of, place
from victor_jax.weights.read import open_checkpoint

STEPS = 3
LINEAR = ("attention/q", "attention/k", "attention/v", "attention/o", "mlp/gate", "mlp/up", "mlp/down")


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    small_run.share_compile_cache(tmp_path_factory.mktemp("compiled"))
    yield
    small_run.forget_compile_cache()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_run.write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def changes(tmp_path_factory, start):
    data = small_run.write_data(tmp_path_factory.mktemp("rows") / "data")
    return overrides(
        start, data, total_steps=STEPS, checkpoint__every=1, checkpoint__keep_last=0, lora__alpha=8.0, lora__dropout=0.5
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, changes):
    """A work folder with the checkpoints of steps 1 to 3."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    run_here(workdir, changes, recipe="finetune_lora")
    return workdir


def losses_of(changes, workdir):
    """A function -> mean loss of each row of a step's batch, under these parameters in place of those that the run
    starts from; and those. All rows have as many positions to learn."""
    parsed = settings.read(small_run.config_of(changes, "finetune_lora"))
    begin: Checkpoint = open_start(parsed)
    mesh = make_mesh(fsdp=8)
    run = make_run(parsed, begin.config, mesh)
    tensors = start_tensors(run, begin)
    train, frozen = trained_params(run, tensors), place(run.frozen, tensors, run.module)
    inputs = small_run.open_inputs(parsed, begin, run.module.method, mesh, workdir)
    of_rows = jax.jit(row_losses, static_argnums=(0, 4, 5))

    def losses(params, key=None, step=1):
        batch = inputs.train[step]
        (part,), (shape,) = rows_on_mesh(batch.parts, mesh), batch.shapes
        with jax.set_mesh(mesh):
            loss, count = of_rows(run.module, frozen | train | params, part, key, sizes_of(run, shape), 64)
        return np.asarray(loss / count)

    return losses, train


@pytest.fixture(scope="module")
def adapted_losses(trained, changes):
    return losses_of(changes, trained)[0]


def params_of(workdir, step):
    leaves = saved(workdir, step)
    return {path.removeprefix("params/"): leaf for path, leaf in leaves.items() if path.startswith("params/")}


def test_adapters_projector_and_registers_train_and_nothing_else(trained):
    before, after = params_of(trained, 1), params_of(trained, STEPS)
    expected = {f"language/stages_{stage}_0/{name}/lora_{half}" for stage in (0, 1) for name in LINEAR for half in "ab"}
    expected |= {f"projector/linear_{n}/{leaf}" for n in (1, 2) for leaf in ("kernel", "bias")} | {
        "compression/registers"
    }
    assert after.keys() == expected
    for path, leaf in after.items():
        assert not np.array_equal(leaf, before[path]), path


def test_the_merged_export_answers_as_the_adapters_did(trained, changes, adapted_losses):
    """Losses of the run's own forward with adapters, and of a plain one on the exported model."""
    adapted, untrained = (adapted_losses(params) for params in (params_of(trained, STEPS), {}))
    exported = {"init_from": str(trained / "model"), "lora.rank": 0}
    plain_losses, train = losses_of(changes | exported, trained)
    assert not any(is_adapter(path) for path in train)
    np.testing.assert_allclose(plain_losses({}), adapted, rtol=1e-5)
    assert np.abs(adapted - untrained).max() > 1e-2, "training has moved them"


def test_the_export_changes_kernels_and_keeps_all_else(trained, start):
    given, merged = open_checkpoint(start).tensors, open_checkpoint(trained / "model").tensors
    assert merged.keys() == given.keys() | {"compression/registers"}
    for name, tensor in given.items():
        is_adapted = name.startswith("language/layers/") and name.endswith("/kernel")
        same = np.array_equal(merged[name].load(), tensor.load())
        assert same != (is_adapted or name.startswith("projector/")), name


def test_an_untrained_adapter_leaves_every_bit(trained, start):
    """Step 0 has the learning rate 0, so after it b is zero still and a is as it was drawn."""
    adapters = {path: jnp.asarray(leaf) for path, leaf in params_of(trained, 1).items() if is_adapter(path)}
    module = small_run.small_run({"lora.rank": 4}, recipe="finetune_lora").module
    given = open_checkpoint(start).tensors
    plain = merged(given | layers_of(adapters, module), Lora(rank=4, alpha=8.0))
    assert plain.keys() == given.keys()
    for name, tensor in given.items():
        np.testing.assert_array_equal(plain[name].load(), tensor.load(), err_msg=name)


def test_dropout_is_on_where_a_key_is_given_and_only_there(trained, adapted_losses):
    params = params_of(trained, STEPS)
    quiet, again = (adapted_losses(params) for _ in range(2))
    noisy, other, same = (adapted_losses(params, jax.random.key(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(quiet, again)
    np.testing.assert_array_equal(noisy, same)
    assert not np.isclose(noisy, quiet, rtol=1e-6).any()
    assert not np.isclose(noisy, other, rtol=1e-6).any()


def test_training_drops_out_by_seed_step_and_part(trained, adapted_losses):
    """The logged loss of a step is that of the parameters before it, under the dropout of its only part."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(42), 2), 0)
    noisy = adapted_losses(params_of(trained, 2), key, step=2)
    assert metrics(trained)[2]["loss"] == pytest.approx(noisy.mean(), rel=1e-5)
