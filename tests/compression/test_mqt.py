import re
from dataclasses import replace

import field
import jax
import numpy as np
import pytest
import talking
from flax.traverse_util import unflatten_dict

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import torch_blocks as blocks  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.compression.spec import parse  # noqa: E402
from victor_jax.compression.stream import Seen  # noqa: E402
from victor_jax.data.batches import build_batch  # noqa: E402
from victor_jax.errors import UserError  # noqa: E402
from victor_jax.inference import programs  # noqa: E402
from victor_jax.inference.buckets import room_for  # noqa: E402
from victor_jax.models.sizes import SIZES  # noqa: E402
from victor_jax.models.vlm import VLMModule  # noqa: E402
from victor_jax.weights import fresh  # noqa: E402

WIDE = replace(field.CONFIG, vision=replace(field.CONFIG.vision, width=256))  # four heads
CONFIG = SIZES["7b"]


@torch.no_grad()
def reference(own, features, count):
    positions = blocks.positions(16, features.shape[-1])
    q = blocks.norm(own, "norm_queries", blocks.tensor(own["queries"]) + positions[:count], 1e-6)
    k = blocks.norm(own, "norm_keys", blocks.resized(positions[None], 4, "bicubic"), 1e-6)
    v = blocks.norm(own, "norm_values", features, 1e-6)
    return blocks.attend(own, 4, q.expand(len(v), -1, -1), k.expand(len(v), -1, -1), v)


def test_equals_the_slow_reference():
    features = np.random.default_rng(0).normal(size=(2, 16, 256)).astype(np.float32)
    found, own = field.compressed("mqt:tokens=7", Seen(features, {}, None), WIDE)
    np.testing.assert_allclose(found, reference(own, blocks.tensor(features), 7), atol=1e-5, rtol=0)


def test_rows_that_drew_fewer_equal_a_model_of_so_many():
    """In one batch, the first row, of two images, has 2 tokens of each, the second all 8 of its one image."""
    rows, images = field.unlike_rows("mqt:tokens=8")
    module, params = field.model("mqt:tokens=8")
    shape, size = room_for(rows), field.CONFIG.vision.image_size
    batch = build_batch(rows, images, 0, size, shape, drawn=np.array([2, 8, 4]))
    sizes = module.method.plan.sizes(shape.counts(0))
    found = programs.full_pass(
        unflatten_dict(params, sep="/"), batch, module=module, sizes=sizes, end=programs.TextLogits(12)
    )
    for row, count in ((0, 2), (1, 8)):
        fewer = replace(rows[row], image_tokens=(count,) * len(rows[row].image_tokens))
        (alone,) = field.logits(f"mqt:tokens={count}", [fewer], images[row : row + 1])
        np.testing.assert_allclose(found[row, : len(alone)], alone, atol=field.TOLERANCE, rtol=0)


def test_it_learns_and_any_smaller_number_can_be_asked_for(tmp_path):
    field.learns("mqt:tokens=8", tmp_path)
    eight = victor_jax.load(tmp_path / "orbax", dtype="float32")
    four = victor_jax.load(tmp_path / "orbax", "mqt:tokens=4", dtype="float32")

    def visual(vlm):
        compute = jax.jit(lambda params, pixels: vlm.module.apply(params, pixels, method=VLMModule.visual_tokens)[0])
        return np.asarray(compute({"params": unflatten_dict(vlm.params, sep="/")}, field.pixels(2)[None]))

    found = visual(four)
    assert found.shape == (1, 2 * 4, 64)
    first = visual(eight).reshape(2, 8, 64)[:, :4]
    np.testing.assert_allclose(found.reshape(2, 4, 64), first, atol=1e-6, rtol=0)

    four.save(tmp_path / "four", "orbax")
    message = "compressor/queries (4, 32) (mqt:tokens=4), mqt:tokens=8 asks for compressor/queries (8, 32): "
    with pytest.raises(UserError, match=re.escape(message)):
        victor_jax.load(tmp_path / "four", "mqt:tokens=8", dtype="float32")


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        ("mqt:tokens=8", "mqt:tokens=3,draw=no"),
        ("mqt:tokens=8,draw=no", "mqt:tokens=8"),
        ("mqt:tokens=8", "mqt:tokens=8+vtw:layer=2"),  # what brings no parameters may be added
    ],
)
def test_trained_queries_serve(trained, asked):
    checkpoint = talking.checkpoint(None, trained)
    method = parse(asked, checkpoint.config)
    found = fresh.with_own(checkpoint, method, None)["compression/compressor/queries"].load()
    count = method.compressor.count
    np.testing.assert_array_equal(found, checkpoint.own["compression/compressor/queries"].load()[:count])


def test_the_first_queries_serve_alone_only_if_they_were_drawn_alone():
    checkpoint = talking.checkpoint(None, "mqt:tokens=8,draw=no")
    with pytest.raises(UserError, match="cannot serve another"):
        fresh.with_own(checkpoint, parse("mqt:tokens=3", checkpoint.config), None)


def test_what_a_row_may_draw():
    assert parse("mqt:tokens=256", CONFIG).draws == tuple(range(2, 257, 2))
    assert parse("mqt:tokens=7", CONFIG).draws == (2, 4, 6, 7)
    assert parse("mqt:tokens=1", CONFIG).draws == (1,)
    assert parse("mqt:tokens=256,draw=no", CONFIG).draws == ()


@pytest.mark.parametrize(("tokens", "config", "message"), [
    (289, CONFIG, "tokens=289 is more than the 16 x 16 positions of queries: choose 1 to 256"),
    (26, SIZES["small"], "tokens=26 compresses nothing: an image has 16 features"),
    (256, replace(CONFIG, keep_class_token=True), "keeps the class token"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tokens, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"mqt:tokens={tokens}", config)
