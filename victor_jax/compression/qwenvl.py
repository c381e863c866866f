"""The adapter of Qwen-VL (Bai et al., arXiv 2308.12966): learned queries read the features in one cross-attention.

Queries and features lie on grids over the image, and fixed 2-D sine-cosine positions are added to queries and keys,
after their norms; those of the features are the queries' positions, resized. As in the authors' code (`visual.py` of
Qwen/Qwen-VL): heads of 128, a norm after the attention. Ours: it has the width of the features and stands before the
checkpoint's projector, which replaces the matrices around it, so that a plain LLaVA checkpoint is a start.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.blocks import CrossAttention, check_fewer, check_grid, grid_positions, head_count, resized
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import LayerNorm
from victor_jax.models.parameters import Normal, declare

HEAD_DIM, EPS = 128, 1e-6


@dataclass(frozen=True)
class GridOfQueries(Compressor):
    side: int

    def tokens(self, config: VLMConfig) -> int:
        return self.side**2

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return Adapter(self.side, dtype)


class Adapter(nn.Module):
    side: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, side * side, E]
        images, patches, width = seen.features.shape
        positions = grid_positions(self.side, width)
        queries = self.param("queries", declare(Normal(0.02)), positions.shape)
        queries = LayerNorm(EPS, name="norm_queries")(queries) + positions
        values = LayerNorm(EPS, name="norm_features")(seen.features)
        keys = values + resized(positions, math.isqrt(patches), "cubic").astype(values.dtype)[None]
        heads = head_count(width, HEAD_DIM)
        attend = CrossAttention(heads, width // heads, True, self.dtype, name="attention")
        y = attend(jnp.broadcast_to(queries, (images, *queries.shape)), keys, values)
        return LayerNorm(EPS, name="norm")(y)


def qwenvl(config: VLMConfig, tokens: Positive) -> Method:
    check_grid(config)
    check_fewer(config, tokens)
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise UserError(f"tokens={tokens} is no square grid of queries: choose {side**2} or {(side + 1) ** 2}")
    return Method(Plan((Layers(config.language.depth),)), compressor=GridOfQueries(side))
