"""A control for Victor: the means of an image's tokens in place of its registers. Trained as usual, or untrained.

The tokens of each image are cut into windows of neighbours, of equal length up to one; after `layer` layers the mean of
each window stays, where the last token of the window stood, as registers stand behind what they read.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.places import KeepPlaces, keeping
from victor_jax.compression.plan import Method, Positive
from victor_jax.compression.steps import Positions
from victor_jax.compression.stream import Stream, take
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class KeepMeans(KeepPlaces):
    """The places that stay are the ends of windows, and take over their means."""

    def gather(self, stream: Stream, index: jax.Array, is_visual: jax.Array) -> Stream:
        windows, images = len(self.places), stream.kinds.shape[1] // self.of
        if not images:
            return stream
        within = jnp.array(np.searchsorted(self.places, np.arange(self.of)))[index % self.of]
        window = index // self.of * windows + within
        member = jax.nn.one_hot(jnp.where(is_visual, window, -1), images * windows, dtype=stream.x.dtype)  # [B, T, W]
        total = jnp.einsum("BTW,BTD->BWD", member, stream.x, preferred_element_type=jnp.float32)
        means = total / jnp.maximum(member.astype(jnp.float32).sum(axis=1), 1)[..., None]
        x = jnp.where(is_visual[..., None], take(means, window).astype(stream.x.dtype), stream.x)
        return replace(stream, x=x)


def windows(config: VLMConfig, tokens: Positive, layer: int, positions: Positions = "keep") -> Method:
    of = config.features_per_image
    number = min(tokens, of)
    ends = tuple(of * (window + 1) // number - 1 for window in range(number))
    return keeping(KeepMeans(ends, of, positions), layer, config.language.depth)
