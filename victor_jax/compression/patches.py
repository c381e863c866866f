"""What compressors share that choose among the patches of an image. It knows no method."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Compressor
from victor_jax.compression.stream import Seen, take
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.ops.attention import attention_rows


@dataclass(frozen=True)
class MostAttended(Compressor):
    """The groups of neighbouring patches that the class token attends to most, in reading order."""

    groups: int
    size: int  # patches of a group
    layers: range  # of the vision tower, whose attention is added up

    def tokens(self, config: VLMConfig) -> int:
        return self.groups * self.size

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return KeepMostAttended(self.groups, self.size)

    def looked(self, config: VLMConfig) -> range:
        return self.layers

    def look(self, q: jax.Array, k: jax.Array) -> jax.Array:
        return class_attention(q, k)


class KeepMostAttended(nn.Module):
    groups: int
    size: int

    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, groups * size, E]
        images, _, width = seen.features.shape
        scores = seen.looks.sum(axis=0).reshape(images, -1, self.size).sum(axis=2)
        grouped = seen.features.reshape(images, -1, self.size * width)
        return take(grouped, jnp.sort(highest(scores, self.groups), axis=1)).reshape(images, -1, width)


def class_attention(q: jax.Array, k: jax.Array) -> jax.Array:
    """q and k [I, 1 + P, N, H] of a vision layer -> float32 [I, P]: the class token's attention, mean over heads."""
    everywhere = jnp.ones((len(q), 1, q.shape[1]), bool)
    return attention_rows(q[:, :1], k, everywhere).mean(axis=1)[:, 0, 1:]


def highest(scores: jax.Array, count: int) -> jax.Array:
    """scores [I, P] -> int32 [I, count]: the patches with the highest, in falling order, of equal ones the first."""
    return jax.lax.top_k(scores, count)[1]


def marked(chosen: jax.Array, used: jax.Array | None, patches: int) -> jax.Array:
    """chosen int32 [I, R] -> bool [I, P]: whether a patch is among those that are used, bool [I, R] (None: all)."""
    chosen = chosen if used is None else jnp.where(used, chosen, patches)  # which is no patch
    return jax.nn.one_hot(chosen, patches, dtype=bool).any(axis=1)


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [I, R, E], b [I, P, E] -> float32 [I, R, P], in full precision on every platform: near ones are compared."""
    a, b = (x / jnp.linalg.norm(x, axis=2, keepdims=True) for x in (a.astype(jnp.float32), b.astype(jnp.float32)))
    return jnp.einsum("IRE,IPE->IRP", a, b, precision="highest")


def weighted_sums(weights: jax.Array, features: jax.Array) -> jax.Array:
    """weights float32 [I, R, P], features [I, P, E] -> [I, R, E], added up in float32."""
    sums = jnp.einsum("IRP,IPE->IRE", weights, features, preferred_element_type=jnp.float32)
    return sums.astype(features.dtype)


def features_layer(config: VLMConfig) -> int:
    """The number of the vision layer that gives the features (the highest of them), from 0."""
    if max(config.feature_levels) == 0:
        raise UserError(
            "this model takes its features before the first vision layer, so no attention chooses among them: "
            "choose a compression that works in the language tower"
        )
    return max(config.feature_levels) - 1
