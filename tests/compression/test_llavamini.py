"""LLaVA-Mini against plain numpy, its compressor with PyTorch's attention."""

from dataclasses import replace

import field
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import plain  # noqa: E402
import torch_blocks as blocks  # noqa: E402

from victor_jax.compression.spec import parse  # noqa: E402
from victor_jax.errors import UserError  # noqa: E402
from victor_jax.models.sequence import IMAGE  # noqa: E402
from victor_jax.models.sizes import SIZES  # noqa: E402
from victor_jax.ops.losses import IGNORE  # noqa: E402

SPEC = "llavamini:tokens=4,layers=2"
CONFIG = SIZES["7b"]
PATCHES = field.CONFIG.vision.patches


class Model(plain.Plain):
    """Each image is its features and its compressed tokens."""

    def linear(self, name, x):
        return super().linear(name, np.vstack([x, self.compressed(x)]) if name == "projector/linear_1" else x)

    @torch.no_grad()
    def compressed(self, features):
        where = "compression/compressor/reader/"
        own = {n.removeprefix(where): t.astype(np.float32) for n, t in self.tensors.items() if n.startswith(where)}
        positions = blocks.positions(2, features.shape[1])
        of_patches = blocks.resized(positions[None], 4, "bicubic")
        q = blocks.norm(own, "norm_queries", blocks.tensor(own["queries"]), 1e-5) + positions
        x = blocks.norm(own, "norm_features", blocks.tensor(features.astype(np.float32))[None], 1e-5)
        return blocks.attend(own, 1, q[None], x + of_patches, x)[0].numpy()


def reference(row, images):
    """The logits of all positions that reach the top."""
    model, fusing = Model(SPEC), plain.Plain(SPEC)
    where = "compression/steps/layers_"
    fusing.tensors |= {
        f"language/layers/{n.removeprefix(where)}": t for n, t in fusing.tensors.items() if n.startswith(where)
    }
    x, is_visual = model.inputs(row, images)
    is_answer = np.repeat(row.targets != IGNORE, np.where(row.ids == IMAGE, PATCHES + 4, 1))
    if is_visual.any():
        order = np.concatenate([np.flatnonzero(is_visual), np.flatnonzero(~is_visual & ~is_answer)])
        fused = x[order]
        for number in range(2):
            fused = fusing.layer(number, fused, np.arange(len(fused)))
        x[order] = fused
    within = np.cumsum(is_visual) - 1
    x = x[~(is_visual & (within % (PATCHES + 4) < PATCHES))]
    for number in range(plain.LANGUAGE.depth):
        x = model.layer(number, x, np.arange(len(x)))
    return model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none; of the first, there is an answer before the second question."""
    rows, images = field.unlike_rows(SPEC)
    rows[0].targets[5:7] = rows[0].ids[5:7]
    for row, image, (_, logits) in zip(rows, images, plain.reached(SPEC, rows, images), strict=True):
        np.testing.assert_allclose(logits, reference(row, image), atol=field.TOLERANCE, rtol=0)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_it_learns_and_is_saved(tmp_path):
    field.learns(SPEC, tmp_path)


def test_the_tower_reads_the_compressed_tokens_alone():
    method = parse("llavamini", CONFIG)
    assert method == parse("llavamini:tokens=1,layers=4", CONFIG)
    assert method.tokens_per_image(CONFIG) == 577
    sizes = method.plan.sizes(np.array([[0, 62, 2 * 577, 0]]))
    assert method.plan.stage_lengths(sizes) == (64,)


@pytest.mark.parametrize(("written", "config", "message"), [
    ("tokens=5", CONFIG, "tokens=5 is no square grid of queries: choose 4 or 9"),
    ("tokens=625", CONFIG, "tokens=625 compresses nothing"),
    ("tokens=1", replace(CONFIG, keep_class_token=True), "keeps the class token"),
    ("layers=0", CONFIG, "layers=0 .* must be a whole number from 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(written, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"llavamini:{written}", config)
