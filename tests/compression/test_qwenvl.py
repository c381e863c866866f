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

WIDE = replace(field.CONFIG, vision=replace(field.CONFIG.vision, width=256))  # two heads
CONFIG = SIZES["7b"]


@torch.no_grad()
def reference(own, features, side):
    positions = blocks.positions(side, features.shape[-1])
    of_patches = blocks.resized(positions[None], 4, "bicubic")[0]
    reader = {name.removeprefix("reader/"): array for name, array in own.items()}
    q = blocks.norm(reader, "norm_queries", blocks.tensor(reader["queries"]), 1e-6) + positions
    x = blocks.norm(reader, "norm_features", features, 1e-6)
    read = blocks.attend(reader, 2, q.expand(len(x), -1, -1), x + of_patches, x)
    return blocks.norm(own, "norm", read, 1e-6)


@pytest.mark.parametrize("side", [3, 4])
def test_equals_the_slow_reference(side):
    features = np.random.default_rng(0).normal(size=(2, 16, 256)).astype(np.float32)
    found, own = field.compressed(f"qwenvl:tokens={side**2}", Seen(features, {}, None), WIDE)
    np.testing.assert_allclose(found, reference(own, blocks.tensor(features), side), atol=1e-5, rtol=0)


def test_it_learns_and_is_saved(tmp_path):
    field.learns("qwenvl:tokens=4", tmp_path)


@pytest.mark.parametrize(("tokens", "config", "message"), [
    (200, CONFIG, "tokens=200 is no square grid of queries: choose 196 or 225"),
    (625, CONFIG, "tokens=625 compresses nothing: an image has 576 features"),
    (256, replace(CONFIG, keep_class_token=True), "keeps the class token"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tokens, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"qwenvl:tokens={tokens}", config)
