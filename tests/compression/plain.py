"""The model of field.py in plain numpy, one row at a time, without caches or padding: what references are made of.

Double precision; positions of a layer are RoPE's, the order of the array is what causality goes by.
"""

import math

import jax
import numpy as np
from field import CONFIG, TOLERANCE, model, prepared, tensors, unlike_rows
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import Kind
from victor_jax.compression.spec import parse
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import IMAGE
from victor_jax.models.vlm import VLMModule

LANGUAGE, VISION = CONFIG.language, CONFIG.vision


class Plain:
    """The base model, and by `own` what a method brings along."""

    def __init__(self, spec: str = "full", config: VLMConfig = CONFIG) -> None:
        drawn = tensors(parse(spec, config), config)
        self.tensors = {name: array.astype(np.float64) for name, array in drawn.items()}

    def linear(self, name, x):
        y = x @ self.tensors[f"{name}/kernel"]
        return y + self.tensors[f"{name}/bias"] if f"{name}/bias" in self.tensors else y

    def rms_norm(self, name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + LANGUAGE.norm_eps) * self.tensors[f"{name}/scale"]

    def layer_norm(self, name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + VISION.norm_eps)
        return x * self.tensors[f"{name}/scale"] + self.tensors[f"{name}/bias"]

    def vision(self, image):
        """image [3, size, size] -> by level [1 + P, E], by layer its queries and keys [1 + P, N, H]; the class token
        first."""
        side, size = VISION.image_size // VISION.patch_size, VISION.patch_size
        squares = image.reshape(3, side, size, side, size).transpose(1, 3, 0, 2, 4).reshape(side**2, -1)
        x = np.vstack([self.tensors["vision/class_embedding"][None], self.linear("vision/patch_embedding", squares)])
        levels, looks = [self.layer_norm("vision/pre_norm", x + self.tensors["vision/position_embedding"])], []
        for number in range(VISION.depth):
            x = levels[-1]
            name = f"vision/layers/{number}"
            y = self.layer_norm(f"{name}/norm1", x)
            q, k, v = (heads(self.linear(f"{name}/attention/{part}", y), VISION.heads) for part in "qkv")
            y = np.einsum("nts,snh->tnh", softmax(q, k), v).reshape(x.shape)
            x = x + self.linear(f"{name}/attention/o", y)
            y = self.linear(f"{name}/mlp/up", self.layer_norm(f"{name}/norm2", x))
            levels.append(x + self.linear(f"{name}/mlp/down", y / (1 + np.exp(-1.702 * y))))
            looks.append((q, k))
        return levels, looks

    def visual_tokens(self, image):
        """[P, D]."""
        return self.projected(self.vision(image)[0][CONFIG.feature_levels[0]][1:])

    def projected(self, features):
        y = self.linear("projector/linear_1", features)
        return self.linear("projector/linear_2", y * (1 + np.vectorize(math.erf)(y / 2**0.5)) / 2)

    def inputs(self, row, images):
        """The input states of an encoded row [T, D], and which of them are visual [T]."""
        pictures = iter(() if images is None else images)
        pieces = [
            self.visual_tokens(next(pictures)) if id == IMAGE else self.tensors["language/embedding"][id][None]
            for id in row.ids
        ]
        is_visual = np.repeat(row.ids == IMAGE, [len(piece) for piece in pieces])
        return np.concatenate(pieces), is_visual

    def attention(self, number, x, positions, barred=False):
        """The weights of a layer [N, T, T], and the values that they weigh [T, N, H]; `barred`: bool [T, T], what does
        not attend to what."""
        y = self.rms_norm(f"language/layers/{number}/norm1", x)
        counts = {"q": LANGUAGE.heads, "k": LANGUAGE.kv_heads, "v": LANGUAGE.kv_heads}
        name = f"language/layers/{number}/attention"
        q, k, v = (heads(self.linear(f"{name}/{part}", y), count) for part, count in counts.items())
        k, v = (np.repeat(part, LANGUAGE.heads // LANGUAGE.kv_heads, axis=1) for part in (k, v))
        may = np.tril(np.ones((len(x), len(x)), bool)) & np.logical_not(barred)
        return softmax(rotated(q, positions), rotated(k, positions), may), v

    def layer(self, number, x, positions, barred=False):
        name = f"language/layers/{number}"
        weights, values = self.attention(number, x, positions, barred)
        y = np.einsum("nts,snh->tnh", weights, values).reshape(len(x), -1)
        x = x + self.linear(f"{name}/attention/o", y)
        y = self.rms_norm(f"{name}/norm2", x)
        gate = self.linear(f"{name}/mlp/gate", y)
        return x + self.linear(f"{name}/mlp/down", gate / (1 + np.exp(-gate)) * self.linear(f"{name}/mlp/up", y))

    def logits(self, x):
        return self.rms_norm("language/norm", x) @ self.tensors["language/head"]


def reached(spec, rows, images):
    """What the tested model says of each row: the indices in its input sequence of the positions that reach the top,
    and their logits."""
    module, params = model(spec)
    batch, sizes = prepared(module, rows, images)

    @jax.jit
    def top(params, batch):
        return module.apply({"params": unflatten_dict(params, sep="/")}, batch, sizes, method=VLMModule.run)[0].stream

    stream = jax.tree.map(np.asarray, top(params, batch))
    logits = stream.x @ params["language/head"]
    real = stream.kinds != Kind.PADDING
    return [(stream.origin[row][real[row]], logits[row][real[row]]) for row in range(len(rows))]


def equals(spec, reference):
    """A batch of unlike rows, against `reference(row, its images)` of each row alone: the indices in the input sequence
    of what reaches the top, and its logits."""
    rows, images = unlike_rows(spec)
    for row, image, (index, logits) in zip(rows, images, reached(spec, rows, images), strict=True):
        expected_index, expected = reference(row, image)
        np.testing.assert_array_equal(index, expected_index)
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


def heads(x, count):
    """[T, N * H] -> [T, N, H]."""
    return x.reshape(len(x), count, -1)


def rotated(x, positions):
    """x [T, N, H]: each pair of channels (i, i + H / 2) turned by its angle."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * LANGUAGE.rope.theta ** (-np.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def softmax(q, k, may=True):
    """q and k [T, N, H] -> [N, T, T]; `may`: bool [T, T], what attends to what."""
    scores = np.where(may, np.einsum("tnh,snh->nts", q, k) / q.shape[-1] ** 0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
