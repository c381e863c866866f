"""The training step alone: what it differentiates, how it adds up, what it refuses."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from victor_jax.compression.plan import Kind
from victor_jax.data.shapes import Shape
from victor_jax.inference.arrays import encoded_rows
from victor_jax.models.sequence import Batch, lay_out
from victor_jax.models.sizes import llava
from victor_jax.models.vlm import parameters
from victor_jax.ops.losses import IGNORE
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training import memory, settings, setup
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.place import place

ROWS, TEXT, VISUAL, REGISTERS = 8, 12, 4, 2
IMAGE = small_run.CONFIG.image_token


def batch(with_images=True, seed=0, registers=REGISTERS):
    """Rows of one length, each with its own number of supervised positions."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 500, (ROWS, TEXT))
    if with_images:
        ids = np.concatenate([ids[:, :2], np.full((ROWS, VISUAL), IMAGE), ids[:, 2:]], axis=1)
    sequence, _ = lay_out(encoded_rows(ids, None, small_run.CONFIG, VISUAL), registers)
    targets = np.full(sequence.kinds.shape, IGNORE, np.int32)
    end = TEXT + (VISUAL + registers) * with_images
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


def cut(whole, parts):
    return [jax.tree.map(lambda leaf, at=at: np.split(np.asarray(leaf), parts)[at], whole) for at in range(parts)]


def summed(run, checkpoint, whole, parts=1):
    """The sums of a batch, and the mean loss of each row."""
    train, frozen = params(run, checkpoint)
    sums, row_loss = run.zeros(), []
    for which, part in enumerate(cut(whole, parts)):
        sums, of_part = run.accumulate(train, frozen, sums, part, 0, which, sizes=sizes(run, whole))
        row_loss.append(of_part)
    return sums, np.concatenate(row_loss)


def stepped_in(run, checkpoint, parts):
    """A whole step on the batch in so many parts -> the state after it, its metrics."""
    train, _ = params(run, checkpoint)
    sums, _ = summed(run, checkpoint, batch(), parts)
    return run.update(setup.first_state(run, train), sums, np.float32(1e-3))


def largest(grads):
    return max(float(jnp.abs(grad).max()) for grad in grads.values())


def assert_near(found, wanted):
    """Of one tree: to 1e-5 of its largest entry."""
    assert found.keys() == wanted.keys()
    for path, grad in wanted.items():
        np.testing.assert_allclose(found[path], grad, rtol=1e-4, atol=1e-5 * largest(wanted), err_msg=path)


@pytest.fixture(scope="module")
def run():
    """Of stage 2, nothing computed twice."""
    return small_run.small_run()


@pytest.fixture(scope="module")
def whole(run, tensors):
    """The sums of the batch in one part."""
    return summed(run, tensors, batch())


def test_four_parts_add_up_to_the_whole(run, tensors, whole):
    sums, row_loss = summed(run, tensors, batch(), parts=4)
    assert_near(sums.grads, whole[0].grads)
    assert float(sums.loss) == pytest.approx(float(whole[0].loss), rel=1e-5)
    assert int(sums.count) == int(whole[0].count) == ROWS * (ROWS + 1) // 2
    np.testing.assert_allclose(row_loss, whole[1], rtol=1e-5)


def test_four_parts_make_the_same_step_as_one(run, tensors):
    (one, of_one), (four, of_four) = (stepped_in(run, tensors, parts) for parts in (1, 4))
    assert_near(four.optimizer[1].mu, one.optimizer[1].mu)
    for name in ("loss", "grad_norm"):
        assert float(of_four[name]) == pytest.approx(float(of_one[name]), rel=1e-5)


@pytest.mark.parametrize(("remat", "chunk"), [("full", 7), ("dots", 1000)])
def test_what_is_recomputed_and_in_which_chunks_changes_nothing(tensors, whole, remat, chunk):
    sums, row_loss = summed(small_run.small_run({"remat": remat, "loss_chunk": chunk}), tensors, batch())
    assert_near(sums.grads, whole[0].grads)
    np.testing.assert_allclose(row_loss, whole[1], rtol=1e-5)


def test_the_loss_is_the_mean_over_all_supervised_positions(run, tensors, whole):
    """Rows with more to learn weigh more, whatever part they are in."""
    _, metrics = stepped_in(run, tensors, parts=4)
    counts = np.arange(1, ROWS + 1)
    assert float(metrics["loss"]) == pytest.approx(float((whole[1] * counts).sum() / counts.sum()), rel=1e-5)
    assert int(metrics["supervised"]) == counts.sum()
    norm = np.sqrt(sum(float((grad**2).sum()) for grad in whole[0].grads.values())) / counts.sum()
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def test_sums_of_bfloat16_parameters_are_float32(tensors):
    """Each part adds less than half of what bfloat16 could tell apart from a sum of hundreds."""
    run = small_run.small_run({"param_dtype": "bfloat16"})
    train, frozen = params(run, tensors)
    assert {leaf.dtype for leaf in train.values()} == {jnp.dtype("bfloat16")}
    once, _ = run.accumulate(train, frozen, run.zeros(), batch(), 0, 0, sizes=sizes(run, batch()))
    large = replace(once, grads={path: 300 * grad for path, grad in once.grads.items()})
    wanted = {path: 301 * np.asarray(grad) for path, grad in once.grads.items()}
    sums, _ = run.accumulate(train, frozen, large, batch(), 0, 0, sizes=sizes(run, batch()))
    for path, grad in sums.grads.items():
        assert grad.dtype == jnp.float32
        np.testing.assert_allclose(grad, wanted[path], rtol=1e-5, err_msg=path)


def test_one_program_for_each_shape_of_a_part_and_one_update(tensors):
    run = small_run.small_run(recipe="pretrain")
    train, frozen = params(run, tensors)
    state = setup.first_state(run, train)
    for number in range(2):
        sums = run.zeros()
        for with_images in (True, False, True):
            part = batch(with_images, seed=number)
            sums, _ = run.accumulate(state.train, frozen, sums, part, number, 0, sizes=sizes(run, part))
        state, _ = run.update(state, sums, np.float32(1e-3))
    assert [program._cache_size() for program in (run.zeros, run.accumulate, run.update)] == [1, 2, 1]


def test_the_sums_are_updated_in_place(run, tensors):
    train, frozen = params(run, tensors)
    sums = run.zeros()
    run.accumulate(train, frozen, sums, batch(), 0, 0, sizes=sizes(run, batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(sums))


def test_no_second_set_of_gradients_is_in_memory():
    """Of a model whose layers are larger than its activations, vision tower and vocabulary."""
    model = llava(128, 344, 8, small_run.VISION, head_dim=32)
    model = replace(model, language=replace(model.language, vocabulary=64))
    config = small_run.config_of({"remat": "full", "batch_size": 1}, argument="full,runlocal")
    run = setup.make_run(settings.read(config), model, make_mesh(devices=jax.devices()[:1]))
    shape, number = Shape(8, 0, 0), jax.ShapeDtypeStruct((), "int32")
    part, sizes = setup.abstract_part(run, shape), setup.sizes_of(run, shape)
    lowered = run.accumulate.lower(run.train, run.frozen, run.sums, part, number, number, sizes=sizes)
    taken, held = lowered.compile().memory_analysis(), memory.bytes_of(run.sums)
    assert taken.alias_size_in_bytes >= held
    assert taken.temp_size_in_bytes < held / 2


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_every_register_learns_and_the_frozen_parts_have_no_state(run, tensors, recipe):
    run = run if recipe == "finetune" else small_run.small_run(recipe=recipe)
    grads = summed(run, tensors, batch())[0].grads
    parts = {path.split("/")[0] for path in grads}
    assert parts == {"projector", "compression"} | ({"language"} if recipe == "finetune" else set())
    assert (np.abs(grads["compression/registers"]).max(axis=1) > 1e-4).all()
    assert all(np.abs(grad).max() > 0 for path, grad in grads.items() if path != "language/embedding")
    held = jax.tree.leaves(run.state.optimizer)
    assert sum(leaf.size for leaf in held if leaf.ndim) == 2 * sum(leaf.size for leaf in run.train.values())
    assert {path.split("/")[0] for path in run.frozen} == {"vision", "language", "projector", "compression"} - parts


def test_text_alone_gives_the_registers_no_gradient(run, tensors):
    grads = summed(run, tensors, batch(with_images=False))[0].grads
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
    sums, row_loss = run.accumulate(train, frozen, run.zeros(), batch(), 1, 0, sizes=sizes(run, batch()))
    after, metrics = run.update(state, sums, np.float32(1e-3))
    metrics |= {"row_loss": row_loss}
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
