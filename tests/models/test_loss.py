"""The loss of a row counts the targets of the positions that reach the top, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from small_run import CONFIG

from victor_jax.compression.spec import parse
from victor_jax.inference import programs
from victor_jax.models.sequence import IMAGE, Batch, EncodedRow, kind_counts, lay_out
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.losses import IGNORE


def caption(*words):
    """As the template `plain` of stage 1: start token, image, then words that are all supervised."""
    ids = np.array([1, IMAGE, *words], np.int32)
    return EncodedRow(ids, np.where(np.arange(len(ids)) < 2, IGNORE, ids), (CONFIG.features_per_image,))


ROWS = [
    caption(7, 8, 9),
    caption(5, 6, 3, 4, 11, 12),
]  # below 8 positions of text, so that rows above a cut hold padding


@pytest.mark.parametrize(
    ("compression", "lost"),
    [("full", 0), ("vtw:layer=2", 1), ("vtw:layer=0", 1), ("victor:registers=2,layer=1", 0)],
)
def test_a_position_that_leaves_takes_its_target_with_it(compression, lost):
    """Under VTW that is the first word of a caption: the last visual token predicts it, a register under Victor."""
    method = parse(compression, CONFIG)
    module, rng = VLMModule(CONFIG, method), np.random.default_rng(0)
    flat = {
        path: rng.normal(0, leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3, leaf.shape).astype(np.float32)
        for path, leaf in parameters(module).items()
    }
    params = unflatten_dict(flat, sep="/")
    sequence, targets = lay_out(ROWS, method.registers)
    pixels = rng.integers(0, 255, (2, 1, 3, CONFIG.vision.image_size, CONFIG.vision.image_size), np.uint8)
    batch, sizes = Batch(sequence, targets, pixels), method.plan.sizes(kind_counts(ROWS, method.registers))
    loss, count = jax.jit(module.apply, static_argnums=(2, 3), static_argnames="method")(
        {"params": params}, batch, sizes, 4, method=VLMModule.loss
    )
    logits = programs.full_pass(params, batch, module=module, sizes=sizes, end=programs.TextLogits(8))
    assert count.tolist() == [3 - lost, 6 - lost]
    # What text positions predict: each word from the one before it, and the first one only beside a position of text.
    said = jax.nn.log_softmax(logits)
    from_text = [
        -sum(float(said[row, 1 + at, word]) for at, word in enumerate(of_row.ids[3:]))
        for row, of_row in enumerate(ROWS)
    ]
    first = np.asarray(loss) - from_text
    if lost:
        np.testing.assert_allclose(first, 0, atol=1e-4)
    else:
        assert (first > 0.1).all(), "the first word is predicted by a position of another kind"


@pytest.mark.parametrize("path", ["compression/registers", "language/embedding"])
def test_gradients_of_tables_are_summed_in_float32(path):
    """Every row adds to the same few: in bfloat16, 64 equal gradients would not add up to 64 times one."""
    method = parse("victor:registers=2,layer=1", CONFIG)
    module, rng, row = VLMModule(CONFIG, method, jnp.bfloat16), np.random.default_rng(0), caption(5, 6, 3)
    params = {
        path: jnp.asarray(rng.normal(0, 0.3, leaf.shape).astype(np.float32))
        for path, leaf in parameters(module).items()
    }

    def gradient(rows):
        """Of a table alone, so that only its lookup sums."""
        sequence, _ = lay_out([row] * rows, method.registers)
        visual = jnp.zeros((rows, CONFIG.features_per_image, CONFIG.language.width), jnp.bfloat16)

        def embedded(table):
            tree = unflatten_dict(params | {path: table}, sep="/")
            x = module.apply({"params": tree}, sequence, visual, method=VLMModule.embed)
            return (x.astype(jnp.float32) * weights[None]).sum()

        length = sequence.kinds.shape[1]
        weights = np.random.default_rng(1).normal(size=(length, CONFIG.language.width)).astype(np.float32)
        return np.asarray(jax.jit(jax.grad(embedded))(params[path]))

    one, many = gradient(1), gradient(64)
    assert np.abs(one).max() > 0.1
    np.testing.assert_allclose(many, 64 * one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "exact"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_every_product_of_float32_is_exact_on_every_platform(dtype, exact):
    """GPUs and TPUs round the factors of float32 products unless each is told not to, gradients included."""
    method = parse("victor:registers=2,layer=1", CONFIG)
    module = VLMModule(CONFIG, method, dtype, remat="full")
    params = unflatten_dict({path: leaf.value for path, leaf in parameters(module).items()}, sep="/")
    sequence, targets = lay_out(ROWS, method.registers)
    pixels = np.zeros((2, 1, 3, CONFIG.vision.image_size, CONFIG.vision.image_size), np.uint8)
    batch, sizes = Batch(sequence, targets, pixels), method.plan.sizes(kind_counts(ROWS, method.registers))

    def summed(params):
        return module.apply({"params": params}, batch, sizes, 4, method=VLMModule.loss)[0].sum()

    products = [
        line for line in jax.jit(jax.grad(summed)).lower(params).as_text().splitlines() if "dot_general" in line
    ]
    assert len(products) > 40
    assert {"HIGHEST" in line for line in products} == {exact}
