from dataclasses import replace

import field
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import torch_blocks as blocks  # noqa: E402

from victor_jax.compression.spec import parse  # noqa: E402
from victor_jax.compression.stream import Seen  # noqa: E402
from victor_jax.errors import UserError  # noqa: E402
from victor_jax.models.sizes import SIZES  # noqa: E402

# 6 x 6 patches, two heads.
WIDE = replace(field.CONFIG, vision=replace(field.CONFIG.vision, width=256, image_size=24))
CONFIG = SIZES["7b"]


@torch.no_grad()
def reference(own, features, levels, side):
    """One place of the small grid after the other."""

    def projected(name):
        hidden = torch.nn.functional.gelu(blocks.linear(own, f"{name}_1", levels))
        return blocks.norm(own, f"norm_{name}", blocks.linear(own, f"{name}_2", hidden), 1e-6)

    coarse = blocks.linear(own, "q", blocks.resized(features, side, "bilinear"))
    queries, keys, values = blocks.norm(own, "norm_q", coarse, 1e-6), projected("k"), projected("v")
    size, places = 6 // side, []
    for row in range(side):
        for column in range(side):
            square = [6 * (size * row + y) + size * column + x for y in range(size) for x in range(size)]
            at = side * row + column
            places.append(blocks.attend(own, 2, queries[:, at : at + 1], keys[:, square], values[:, square]))
    return torch.cat(places, dim=1)


@pytest.mark.parametrize("side", [2, 3])
def test_equals_the_slow_reference(side):
    rng = np.random.default_rng(0)
    features, two, three = (rng.normal(size=(2, patches, 256)).astype(np.float32) for patches in (36, 37, 37))
    found, own = field.compressed(f"tokenpacker:tokens={side**2}", Seen(features, {3: three, 2: two}, None), WIDE)
    levels = np.concatenate([two, three], axis=-1)[:, 1:]
    expected = reference(own, blocks.tensor(features), blocks.tensor(levels), side)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_it_reads_the_levels_of_the_paper():
    compressor = parse("tokenpacker:tokens=144", CONFIG).compressor
    assert compressor.levels(CONFIG) == (12, 16, 22, 23)
    assert compressor.levels(WIDE) == (2, 3)


def test_a_batch_of_unlike_rows_equals_its_rows_alone():
    field.equals_its_rows_alone("tokenpacker:tokens=4")


def test_it_learns_and_is_saved(tmp_path):
    field.learns("tokenpacker:tokens=4", tmp_path)


@pytest.mark.parametrize(("tokens", "config", "message"), [
    (100, CONFIG, "tokens=100 does not divide a grid of 24 x 24 patches into squares"),
    (144, replace(CONFIG, keep_class_token=True), "keeps the class token"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tokens, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"tokenpacker:tokens={tokens}", config)
