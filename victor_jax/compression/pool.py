"""Mean pooling before the tower: the patches of each square of the image become one feature.

The control that every other compressor has to beat; trained as usual, or untrained. It has no parameters of its own.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from victor_jax.compression.patches import check_patches
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.errors import UserError
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
    return Method(Plan((Layers(config.language.depth),)), compressor=Squares(side_of(config, tokens)))


def side_of(config: VLMConfig, tokens: int) -> int:
    """Of the smaller grid."""
    check_patches(config)
    grid = math.isqrt(config.vision.patches)
    fitting = [side**2 for side in range(1, grid + 1) if grid % side == 0]
    if tokens not in fitting:
        raise UserError(
            f"tokens={tokens} does not divide a grid of {grid} x {grid} patches into squares: choose "
            f"{' or '.join(map(str, fitting))}"
        )
    return math.isqrt(tokens)
