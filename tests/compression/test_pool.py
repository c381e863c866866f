from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import talking

import victor_jax
from victor_jax.compression.pool import MeanPool
from victor_jax.compression.spec import parse
from victor_jax.compression.stream import Seen
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule

CONFIG = SIZES["7b"]  # 24 x 24 patches


def test_means_of_squares_equal_a_loop():
    grid = np.random.default_rng(0).normal(size=(2, 24, 24, 5)).astype(np.float32)
    pooled = MeanPool(6).apply({}, Seen(jnp.asarray(grid.reshape(2, 576, 5)), {}, None))
    for row in range(6):
        for column in range(6):
            square = grid[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_allclose(pooled[:, 6 * row + column], square.mean(axis=(1, 2)), atol=1e-6)


def test_the_sequence_is_as_short_as_the_features():
    method = parse("pool:tokens=36", CONFIG)
    assert method.tokens_per_image(CONFIG) == 36
    module = VLMModule(CONFIG, method)
    pixels = jax.ShapeDtypeStruct((2, 1, 3, 336, 336), np.uint8)
    tokens = jax.eval_shape(
        lambda pixels: module.init_with_output(jax.random.key(0), pixels, method=VLMModule.visual_tokens)[0][0], pixels
    )
    assert tokens.shape == (2, 36, 4096)


def test_one_token_per_patch_is_full(tmp_path):
    """The same answers through every entry: ids of Hugging Face's processor, prompts, scores."""
    folder = talking.saved(tmp_path / "model")
    patches = talking.CONFIG.vision.patches
    full, pooled = (victor_jax.load(folder, spec, "float32") for spec in ("full", f"pool:tokens={patches}"))
    asked = ["What is this?"], [talking.picture(0)]
    assert full.generate(*asked, 8) == pooled.generate(*asked, 8)
    np.testing.assert_allclose(full.score(*asked, ["a cat"]), pooled.score(*asked, ["a cat"]), atol=1e-5)


def test_a_pooled_image_still_matters(tmp_path):
    vlm = victor_jax.load(talking.saved(tmp_path / "model"), "pool:tokens=1", "float32")
    ids = np.array([[5, *[talking.CONFIG.image_token] * talking.CONFIG.features_per_image, 6]])
    size = talking.CONFIG.vision.image_size
    first, second = (
        vlm.logits(ids, np.random.default_rng(seed).normal(size=(1, 3, size, size)).astype(np.float32))
        for seed in (0, 1)
    )
    assert np.abs(first[0, 1] - second[0, 1]).max() > 1e-3


@pytest.mark.parametrize(("tokens", "config", "message"), [
    (100, CONFIG, "tokens=100 does not divide a grid of 24 x 24 patches into squares: choose 1 or 4 or 9 or 16 or 36"),
    (576, replace(CONFIG, keep_class_token=True), "keeps the class token"),
])  # fmt: skip
def test_what_does_not_fit_the_grid_is_refused(tokens, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"pool:tokens={tokens}", config)
