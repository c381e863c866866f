"""The training step alone: what it differentiates, how it adds up, what it refuses."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from victor_jax.compression.plan import Kind
from victor_jax.inference.arrays import encoded_rows
from victor_jax.models.sequence import Batch, lay_out
from victor_jax.models.vlm import parameters
from victor_jax.ops.losses import IGNORE
from victor_jax.training import setup
from victor_jax.training.step import gradients
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.place import place

ROWS, TEXT, VISUAL, REGISTERS = 8, 12, 4, 2
IMAGE = small_run.CONFIG.image_token
KEY = jax.random.key(0)


def batch(with_images=True, seed=0):
    """Rows of one length, each with its own number of supervised positions."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 500, (ROWS, TEXT))
    if with_images:
        ids = np.concatenate([ids[:, :2], np.full((ROWS, VISUAL), IMAGE), ids[:, 2:]], axis=1)
    sequence, _ = lay_out(encoded_rows(ids, None, small_run.CONFIG, VISUAL), REGISTERS)
    targets = np.full(sequence.kinds.shape, IGNORE, np.int32)
    end = TEXT + (VISUAL + REGISTERS) * with_images
    for row in range(ROWS):
        targets[row, end - 2 - row : end - 1] = ids[row, -1 - row :]
    size = small_run.IMAGE_SIZE
    pixels = rng.integers(0, 255, (ROWS, 1, 3, size, size), np.uint8) if with_images else None
    return Batch(sequence, targets, pixels)


def sizes(run, whole):
    counts = (np.asarray(whole.sequence.kinds)[..., None] == np.array(list(Kind))).sum(axis=1)
    counts[:, Kind.PADDING] = 0
    return run.module.method.plan.sizes(counts)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """Of a random model of order 1."""
    return setup.open_checkpoint(small_run.write_start(tmp_path_factory.mktemp("start")))


def params(run, checkpoint: Checkpoint):
    tensors = setup.start_tensors(run, checkpoint)
    return setup.trained_params(run, tensors), place(run.frozen, tensors, run.module)


def grads_of(run, checkpoint, whole, parts=1, chunk=64):
    train, frozen = params(run, checkpoint)
    cut = [
        jax.tree.map(lambda leaf, part=part: np.split(np.asarray(leaf), parts)[part], whole) for part in range(parts)
    ]
    return jax.jit(gradients, static_argnums=(0, 5, 6))(
        run.module, train, frozen, tuple(cut), KEY, (sizes(run, whole),) * parts, chunk
    )


def largest(grads):
    return max(float(jnp.abs(grad).max()) for grad in grads.values())


def assert_near(found, wanted):
    """Of one tree: to 1e-5 of its largest entry."""
    assert found.keys() == wanted.keys()
    for path, grad in wanted.items():
        np.testing.assert_allclose(found[path], grad, rtol=1e-4, atol=1e-5 * largest(wanted), err_msg=path)


@pytest.fixture(scope="module")
def whole(tensors):
    """The gradients of stage 2, of the batch in one part, nothing computed twice."""
    return grads_of(small_run.small_run(), tensors, batch())


def test_four_parts_add_up_to_the_whole(tensors, whole):
    grads, row_loss, row_count = grads_of(small_run.small_run(), tensors, batch(), parts=4)
    assert_near(grads, whole[0])
    np.testing.assert_allclose(row_loss, whole[1], rtol=1e-5)
    np.testing.assert_array_equal(row_count, np.arange(1, ROWS + 1))


@pytest.mark.parametrize(("remat", "chunk"), [("full", 7), ("dots", 1000)])
def test_what_is_recomputed_and_in_which_chunks_changes_nothing(tensors, whole, remat, chunk):
    grads, row_loss, _ = grads_of(small_run.small_run({"remat": remat}), tensors, batch(), chunk=chunk)
    assert_near(grads, whole[0])
    np.testing.assert_allclose(row_loss, whole[1], rtol=1e-5)


def test_the_loss_is_the_mean_over_all_supervised_positions(tensors, whole):
    """Rows with more to learn weigh more, whatever part they are in."""
    run = small_run.small_run()
    train, frozen = params(run, tensors)
    parts = tuple(jax.tree.map(lambda leaf, half=half: np.split(leaf, 2)[half], batch()) for half in (0, 1))
    state = setup.first_state(run, train)
    _, metrics = run.step(state, frozen, parts, np.int32(0), np.float32(1e-3), sizes=(sizes(run, batch()),) * 2)
    assert float(metrics["loss"]) == pytest.approx(float(whole[1].sum() / whole[2].sum()), rel=1e-5)
    assert int(metrics["supervised"]) == ROWS * (ROWS + 1) // 2
    norm = np.sqrt(sum(float((grad**2).sum()) for grad in whole[0].values())) / float(whole[2].sum())
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_every_register_learns_and_the_frozen_parts_have_no_state(tensors, recipe):
    run = small_run.small_run(recipe=recipe)
    grads, _, _ = grads_of(run, tensors, batch())
    parts = {path.split("/")[0] for path in grads}
    assert parts == {"projector", "compression"} | ({"language"} if recipe == "finetune" else set())
    assert (np.abs(grads["compression/registers"]).max(axis=1) > 1e-4).all()
    assert all(np.abs(grad).max() > 0 for path, grad in grads.items() if path != "language/embedding")
    held = jax.tree.leaves(run.state.optimizer)
    assert sum(leaf.size for leaf in held if leaf.ndim) == 2 * sum(leaf.size for leaf in run.train.values())
    assert {path.split("/")[0] for path in run.frozen} == {"vision", "language", "projector", "compression"} - parts


def test_text_alone_gives_the_registers_no_gradient(tensors):
    grads, _, _ = grads_of(small_run.small_run(), tensors, batch(with_images=False))
    for path, grad in grads.items():
        is_of_images = path.startswith(("compression", "projector"))
        assert (float(jnp.abs(grad).max()) == 0) == is_of_images, path


@functools.cache
def spike_run():
    """Stage 1, where twice the average is a spike: drawn parameters, the run, its compiled step."""
    run = small_run.small_run({"bad_step.spike_factor": 2.0}, recipe="pretrain")
    rng = np.random.default_rng(0)
    abstract = parameters(run.module)
    drawn = {path: rng.normal(0, 0.05, leaf.shape).astype(np.float32) for path, leaf in abstract.items()}
    return drawn, run


def stepped(average, poison=None):
    """State before, state after, metrics. `poison` is the parameter that holds a NaN."""
    drawn, run = spike_run()
    train, frozen = ({path: jnp.asarray(drawn[path]) for path in part} for part in (run.train, run.frozen))
    if poison:
        frozen[poison] = frozen[poison].at[(0,) * frozen[poison].ndim].set(jnp.nan)
    state = replace(setup.first_state(run, train), loss_average=jnp.float32(average))
    before = jax.tree.map(np.array, state)
    after, metrics = run.step(state, frozen, (batch(),), np.int32(1), np.float32(1e-3), sizes=(sizes(run, batch()),))
    return before, jax.tree.map(np.asarray, after), metrics


def changed(before, after):
    return [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was():
    before, after, metrics = stepped(0.0, poison="language/stages_1_0/mlp/down/kernel")
    assert bool(metrics["bad"])
    assert not np.isfinite(metrics["row_loss"]).any()
    assert not any(changed(before, after))


def test_a_spike_leaves_the_state_as_it_was():
    before, after, metrics = stepped(1.0)
    assert float(metrics["loss"]) > 2.0
    assert bool(metrics["bad"])
    assert not any(changed(before, after))


def test_a_loss_below_the_spike_is_a_step_like_any_other():
    before, after, metrics = stepped(4.0)
    assert 4.0 < float(metrics["loss"]) < 8.0
    assert not bool(metrics["bad"])
    assert any(changed(before.optimizer, after.optimizer))
    assert float(after.loss_average) == pytest.approx(0.9 * 4.0 + 0.1 * float(metrics["loss"]))


def test_the_first_step_begins_the_average():
    _, after, metrics = stepped(0.0)
    assert not bool(metrics["bad"])
    assert float(after.loss_average) == pytest.approx(float(metrics["loss"]))
