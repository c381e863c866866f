"""Rows that share pictures read what each would read of its own: also where images have unlike numbers of tokens."""

from functools import partial

import field
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from victor_jax.models.vlm import VLMModule


def test_each_row_reads_its_own_pictures():
    module, params = field.model("prumerge")
    size = field.CONFIG.vision.image_size
    pixels = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    pictures = np.array([[2, 0], [0, 1], [2, 2]], np.int32)
    see = partial(
        jax.jit(partial(module.apply, method=VLMModule.visual_tokens)), {"params": unflatten_dict(params, sep="/")}
    )
    tokens, used = see(pixels, pictures)
    own_tokens, own_used = see(pixels[pictures])
    np.testing.assert_allclose(tokens, own_tokens, atol=field.TOLERANCE)
    np.testing.assert_array_equal(used, own_used)
    assert not used.all()
