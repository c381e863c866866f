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

CONFIG = SIZES["7b"]


@torch.no_grad()
def reference(own, features, depth):
    """features [P, E] of one image, one head of 64 after the other -> [tokens, E]."""
    latents = blocks.tensor(own["latents"])
    for i in range(depth):
        block = {n.removeprefix(f"blocks_{i}/"): x for n, x in own.items() if n.startswith(f"blocks_{i}/")}
        queries = blocks.norm(block, "norm_latents", latents, 1e-5)
        read = torch.cat([blocks.norm(block, "norm_features", features, 1e-5), queries])
        q = blocks.linear(block, "attention/q", queries)
        k, v = (blocks.linear(block, f"attention/{name}", read) for name in "kv")
        heads = [slice(64 * head, 64 * head + 64) for head in range(8)]
        found = [torch.softmax(q[:, head] @ k[:, head].T / 8, dim=1) @ v[:, head] for head in heads]
        latents = latents + blocks.linear(block, "attention/o", torch.cat(found, dim=1))
        hidden = blocks.linear(block, "up", blocks.norm(block, "norm_mlp", latents, 1e-5))
        latents = latents + blocks.linear(block, "down", torch.nn.functional.gelu(hidden))
    return blocks.norm(own, "norm", latents, 1e-5)


def test_equals_the_slow_reference():
    features = np.random.default_rng(0).normal(size=(2, 16, 32)).astype(np.float32)
    found, own = field.compressed("perceiver:tokens=5,depth=2", Seen(features, {}, None))
    for image, of_image in enumerate(features):
        expected = reference(own, blocks.tensor(of_image), depth=2)
        np.testing.assert_allclose(found[image], expected, atol=1e-5, rtol=0)


def test_it_learns_and_is_saved(tmp_path):
    field.learns("perceiver:tokens=3,depth=1", tmp_path)


def test_it_may_read_the_class_token_too():
    assert parse("perceiver:tokens=64", replace(CONFIG, keep_class_token=True)).tokens_per_image(CONFIG) == 64


@pytest.mark.parametrize(("written", "message"), [
    ("tokens=577", "tokens=577 compresses nothing: an image has 576 features, choose fewer"),
    ("tokens=64,depth=0", "depth=0 .* must be a whole number from 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(written, message):
    with pytest.raises(UserError, match=message):
        parse(f"perceiver:{written}", CONFIG)
