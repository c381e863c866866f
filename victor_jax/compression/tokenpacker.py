"""TokenPacker (Li et al., arXiv 2407.02392): the features are shrunk to a small grid, and each place of it reads its
own square of patches, at several levels of the vision tower, in one cross-attention.

Layers and starts are those of CircleRadon/TokenPacker (llava/model/multimodal_projector/builder.py), with heads of 128;
its keys are cut into squares of 2 x 2 whatever the number of tokens, ours into those that it asks for. The MLP after
the attention is the checkpoint's projector, so that a plain LLaVA checkpoint is a start.

The levels are 12, 16, 22 and 23 of 24: half and two thirds of the tower, and two and one below its top. In a small
tower those that coincide are read once.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.blocks import CrossAttention, head_count, resized
from victor_jax.compression.grid import grid_side
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import Dense, LayerNorm

HEAD_DIM, EPS = 128, 1e-6


@dataclass(frozen=True)
class PointToRegion(Compressor):
    side: int

    def tokens(self, config: VLMConfig) -> int:
        return self.side**2

    def levels(self, config: VLMConfig) -> tuple[int, ...]:
        depth = config.vision.depth
        return tuple(sorted({depth // 2, 2 * depth // 3, max(depth - 2, 0), depth - 1}))

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return Packer(self.side, dtype)


class Packer(nn.Module):
    side: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, side * side, E]
        images, _, width = seen.features.shape
        coarse = resized(seen.features, self.side, "linear")
        queries = LayerNorm(EPS, name="norm_q")(Dense(width, False, self.dtype, name="q")(coarse))
        levels = jnp.concatenate([level[:, 1:] for _, level in sorted(seen.levels.items())], axis=-1)
        keys, values = (self._projected(levels, width, name) for name in ("k", "v"))
        heads = head_count(width, HEAD_DIM)
        attend = CrossAttention(heads, width // heads, True, self.dtype, name="attention")
        packed = attend(queries.reshape(-1, 1, width), self._squares(keys), self._squares(values))
        return packed.reshape(images, self.side**2, width)

    def _projected(self, levels: jax.Array, width: int, name: str) -> jax.Array:
        """[I, P, widths of all levels] -> [I, P, E]."""
        y = Dense(width, True, self.dtype, name=f"{name}_1")(levels)
        y = Dense(width, True, self.dtype, axes=("tensor", "fsdp"), name=f"{name}_2")(jax.nn.gelu(y, approximate=False))
        return LayerNorm(EPS, name=f"norm_{name}")(y)

    def _squares(self, x: jax.Array) -> jax.Array:
        """[I, P, E] -> [I * side * side, patches of a square, E]."""
        size = math.isqrt(x.shape[1]) // self.side
        grid = x.reshape(-1, self.side, size, self.side, size, x.shape[-1])
        return grid.swapaxes(2, 3).reshape(-1, size * size, x.shape[-1])


def tokenpacker(config: VLMConfig, tokens: Positive) -> Method:
    return Method(Plan((Layers(config.language.depth),)), compressor=PointToRegion(grid_side(config, tokens)))
