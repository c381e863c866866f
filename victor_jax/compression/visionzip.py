"""VisionZip (Yang et al., arXiv 2412.04467): the patches that the class token attends to most, and the rest merged.

Of `tokens`, `contextual` stand for the rest; the others are the class token and the patches that it attends to most in
the vision layer that gives the features, in reading order ("64" of the authors is 54 + 10, the class token being one of
the 54). Patches of the rest, evenly spaced, are targets; each other one joins the target whose key in that layer, mean
over heads, is nearest by cosine. As in dvlab-research/VisionZip a contextual token is its target plus the mean of those
that joined it, where the paper speaks of one average. Untrained or trained. The language tower reads the class token
even if the model keeps none.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.patches import class_attention, cosines, features_layer, highest, marked, weighted_sums
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen, survivors, take
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class DominantAndContextual(Compressor):
    dominant: int  # with the class token
    contextual: int

    def tokens(self, config: VLMConfig) -> int:
        return self.dominant + self.contextual

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return Zip(self.dominant, self.contextual, config.feature_levels)

    def levels(self, config: VLMConfig) -> tuple[int, ...]:
        return config.feature_levels

    def looked(self, config: VLMConfig) -> range:
        layer = features_layer(config)
        return range(layer, layer + 1)

    def look(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return class_attention(q, k), k.astype(jnp.float32).mean(axis=2)  # [I, P], [I, 1 + P, H]


class Zip(nn.Module):
    dominant: int
    contextual: int
    levels: tuple[int, ...]

    def __call__(self, seen: Seen) -> jax.Array:
        (attention,), (keys,) = seen.looks  # of one layer
        features = jnp.concatenate([seen.levels[level] for level in self.levels], axis=-1)  # [I, 1 + P, E]
        patches = jnp.sort(highest(attention, self.dominant - 1), axis=1)
        dominant = jnp.pad(patches + 1, ((0, 0), (1, 0)))  # the class token is number 0
        tokens = take(features, dominant)
        if not self.contextual:
            return tokens
        rest = survivors(~marked(dominant, None, features.shape[1]), features.shape[1] - self.dominant)
        return jnp.concatenate([tokens, self.merged(take(features, rest), take(keys, rest))], axis=1)

    def merged(self, features: jax.Array, keys: jax.Array) -> jax.Array:
        """[I, rest, E] and [I, rest, H] -> [I, contextual, E]."""
        count = features.shape[1]
        targets = jnp.arange(count)[:: count // self.contextual][: self.contextual]
        nearest = cosines(keys[:, targets], keys).argmax(axis=1)  # [I, rest]
        joins = jax.nn.one_hot(nearest, self.contextual, axis=1).at[:, :, targets].set(0.0)  # [I, contextual, rest]
        shares = joins / jnp.maximum(joins.sum(axis=2, keepdims=True), 1)
        return features[:, targets] + weighted_sums(shares, features)


def visionzip(config: VLMConfig, tokens: Positive, contextual: int) -> Method:
    features_layer(config)
    count = min(tokens, 1 + config.vision.patches)
    if contextual >= count:
        raise UserError(
            f"contextual={contextual} of {count} tokens leaves no place for the class token: choose less than {count}"
        )
    zipped = DominantAndContextual(count - contextual, contextual)
    return Method(Plan((Layers(config.language.depth),)), compressor=zipped)
