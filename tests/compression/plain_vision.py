"""The vision tower and projector of field.py's model in plain numpy, for references that need what is inside."""

import math
from functools import partial

import field
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import Method, Plan
from victor_jax.models.vlm import VLMModule


class Tower:
    """`hidden[level]` [I, 1 + P, E], what `level` layers give; `q[layer]` and `k[layer]` [I, 1 + P, N, H]."""

    def __init__(self, pixels, config=field.CONFIG):
        c, self.config = config.vision, config
        self.weights = field.tensors(Method(Plan(())), config)
        grid = c.image_size // c.patch_size
        cut = pixels.reshape(len(pixels), 3, grid, c.patch_size, grid, c.patch_size).transpose(0, 2, 4, 1, 3, 5)
        x = cut.reshape(len(pixels), grid * grid, -1) @ self.weights["vision/patch_embedding/kernel"]
        class_token = np.broadcast_to(self.weights["vision/class_embedding"], (len(x), 1, c.width))
        x = np.concatenate([class_token, x], axis=1) + self.weights["vision/position_embedding"]
        self.hidden, self.q, self.k = [self.norm("vision/pre_norm", x)], [], []
        for layer in range(c.depth):
            self.hidden.append(self.layer(f"vision/layers/{layer}", self.hidden[-1]))

    def layer(self, name, x):
        y = self.norm(f"{name}/norm1", x)
        heads = (*x.shape[:2], self.config.vision.heads, -1)
        q, k, v = (self.dense(f"{name}/attention/{part}", y).reshape(heads) for part in "qkv")
        self.q.append(q)
        self.k.append(k)
        weights = softmax(np.einsum("iqnh,iknh->inqk", q, k) / math.sqrt(q.shape[-1]))
        x = x + self.dense(f"{name}/attention/o", np.einsum("inqk,iknh->iqnh", weights, v).reshape(x.shape))
        up = self.dense(f"{name}/mlp/up", self.norm(f"{name}/norm2", x))
        return x + self.dense(f"{name}/mlp/down", up / (1 + np.exp(-1.702 * up)))

    def dense(self, name, x):
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def norm(self, name, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config.vision.norm_eps)
        return x * self.weights[f"{name}/scale"] + self.weights[f"{name}/bias"]

    def class_row(self, layer, one_head=False):
        """[I, P]: what the class token attends to in a layer, mean over heads; or with all heads as one."""
        q, k = (x.reshape(*x.shape[:2], 1, -1) if one_head else x for x in (self.q[layer], self.k[layer]))
        return softmax(np.einsum("inh,iknh->ink", q[:, 0], k) / math.sqrt(q.shape[-1])).mean(axis=1)[:, 1:]

    def features(self):
        """[I, 1 + P, E], the class token first."""
        return np.concatenate([self.hidden[level] for level in self.config.feature_levels], axis=-1)

    def project(self, features):
        x = self.dense("projector/linear_1", features)
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return self.dense("projector/linear_2", x)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


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
