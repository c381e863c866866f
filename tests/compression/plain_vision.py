"""What compressors before the language tower are compared with: the vision tower of plain.py, over several images."""

from functools import partial

import field
import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from plain import Plain, softmax

from victor_jax.models.vlm import VLMModule


class Tower:
    """`features` [I, 1 + P, E], those of all levels joined, the class token first; `k[layer]` [I, 1 + P, N, H]."""

    def __init__(self, pixels, config=field.CONFIG):
        model = Plain(config=config)
        levels, looks = zip(*map(model.vision, pixels), strict=True)
        self.features = np.stack([np.concatenate([of[n] for n in config.feature_levels], axis=1) for of in levels])
        self.q, self.k = (np.stack([[look[i] for look in of] for of in looks], axis=1) for i in (0, 1))
        self.projected = model.projected

    def class_row(self, layer, one_head=False):
        """[I, P]: what the class token attends to in a layer, mean over heads; or with all heads as one."""
        q, k = self.q[layer], self.k[layer]
        if one_head:
            q, k = (x.reshape(*x.shape[:2], 1, -1) for x in (q, k))
        return np.stack([softmax(*look).mean(axis=0)[0, 1:] for look in zip(q, k, strict=True)])


def visual_tokens(spec, pixels, config=field.CONFIG):
    """What the model itself makes of images under a compression: the tokens of each, without those that are unused."""
    module, params = field.model(spec, config)
    call = jax.jit(partial(module.apply, method=VLMModule.visual_tokens))
    tokens, used = call({"params": unflatten_dict(params, sep="/")}, pixels[:, None])
    used = np.ones(tokens.shape[:2], bool) if used is None else np.asarray(used)
    return [of_image[here] for of_image, here in zip(np.asarray(tokens), used, strict=True)]


def equals(spec, pixels, expected, config=field.CONFIG):
    """`expected`: the tokens of each image."""
    for found, wanted in zip(visual_tokens(spec, pixels, config), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=field.TOLERANCE, rtol=field.TOLERANCE)
