"""Mean pooling before the tower: the patches of each square of the image become one feature.

The control that every other compressor has to beat; trained as usual, or untrained. It has no parameters of its own.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from victor_jax.compression.grid import grid_side
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class Squares(Compressor):
    """A compressor: the grid of patches -> a smaller grid of `side` x `side` means."""

    side: int

    def tokens(self, config: VLMConfig) -> int:
        return self.side**2

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return MeanPool(self.side)


class MeanPool(nn.Module):
    side: int

    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, side * side, E]
        images, patches, width = seen.features.shape
        square = math.isqrt(patches) // self.side
        grid = seen.features.reshape(images, self.side, square, self.side, square, width)
        return grid.mean(axis=(2, 4)).reshape(images, self.side**2, width)


def pool(config: VLMConfig, tokens: Positive) -> Method:
    return Method(Plan((Layers(config.language.depth),)), compressor=Squares(grid_side(config, tokens)))
