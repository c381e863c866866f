"""DivPrune (Alvar et al., arXiv 2503.02175): the visual tokens stay that are least alike, whatever is asked.

Distance is one minus the cosine of projected tokens. First the token is taken whose nearest other is farthest, then,
again and again, the one that is farthest from its nearest among those taken; they go on in reading order. Untrained or
trained. As in vbdi/divprune, where a share is written for the number (0.1 of 576 is `tokens=58`). Here each image is
pruned for itself, and no token can be taken twice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.patches import cosines
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen, survivors, take
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class LeastAlike(Compressor):
    after_projector: ClassVar[bool] = True
    count: int

    def tokens(self, config: VLMConfig) -> int:
        return self.count

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return KeepLeastAlike(self.count)


class KeepLeastAlike(nn.Module):
    count: int

    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, D] -> [I, count, D]
        tokens = jax.lax.stop_gradient(seen.features)  # which ones stay has no gradient
        distance = 1 - cosines(tokens, tokens)  # [I, P, P]
        to_others = jnp.where(jnp.eye(tokens.shape[1], dtype=bool)[None], jnp.inf, distance)
        first = to_others.min(axis=1).argmax(axis=1)

        def taken(one: jax.Array, gap: jax.Array) -> jax.Array:
            """gap [I, P], to the nearest token taken (-inf: taken itself), once `one` int32 [I] is taken as well."""
            gap = jnp.minimum(gap, take(distance, one[:, None])[:, 0])
            return jnp.where(jax.nn.one_hot(one, gap.shape[1], dtype=bool), -jnp.inf, gap)

        gap = taken(first, jnp.full(tokens.shape[:2], jnp.inf))
        gap = jax.lax.fori_loop(1, self.count, lambda _, gap: taken(gap.argmax(axis=1), gap), gap)
        return take(seen.features, survivors(gap == -jnp.inf, self.count))


def divprune(config: VLMConfig, tokens: Positive) -> Method:
    compressor = LeastAlike(min(tokens, config.features_per_image))
    return Method(Plan((Layers(config.language.depth),)), compressor=compressor)
