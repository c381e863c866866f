"""Matryoshka queries (Hu et al., MQT-LLaVA, arXiv 2405.19315): one cross-attention whose first queries serve alone.

Queries have 2-D sine-cosine positions on a fixed grid of 16 x 16; keys are positions only, those of the queries resized
to the patches, and values are the features. In training each row draws its number of queries from 2, 4, … `tokens`; so
any smaller number can be asked for later. The authors draw once per step, in the second stage only: `draw=no` is their
first. Layers and starts are those of gordonhu608/MQT-LLaVA (llava/model/multimodal_projector/builder.py), where heads
have 64 numbers. Ours: the checkpoint's projector follows instead of a single matrix, so that a plain LLaVA checkpoint
is a start.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.blocks import CrossAttention, grid_positions, head_count, resized
from victor_jax.compression.grid import check_fewer, check_grid
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import LayerNorm
from victor_jax.models.parameters import Normal, declare

GRID, HEAD_DIM, EPS = 16, 64, 1e-6


@dataclass(frozen=True)
class FirstQueries(Compressor):
    count: int
    nested: bool

    def tokens(self, config: VLMConfig) -> int:
        return self.count

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return QueryTransformer(self.count, self.nested, dtype)


class QueryTransformer(nn.Module):
    count: int
    nested: bool
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, count, E]
        images, patches, width = seen.features.shape
        positions = grid_positions(GRID, width)
        queries = self.param("queries", declare(Normal(0.02), nested=self.nested), (self.count, width))
        queries = LayerNorm(EPS, name="norm_queries")(queries + positions[: self.count])
        keys = LayerNorm(EPS, name="norm_keys")(resized(positions, math.isqrt(patches), "cubic"))
        values = LayerNorm(EPS, name="norm_values")(seen.features)
        heads = head_count(width, HEAD_DIM)
        attend = CrossAttention(heads, width // heads, True, self.dtype, name="attention")
        queries, keys = (jnp.broadcast_to(x, (images, *x.shape)) for x in (queries, keys))
        return attend(queries, keys, values)


def mqt(config: VLMConfig, tokens: Positive, draw: Literal["yes", "no"] = "yes") -> Method:
    check_grid(config)
    check_fewer(config, tokens)
    if tokens > GRID**2:
        raise UserError(f"tokens={tokens} is more than the {GRID} x {GRID} positions of queries: choose 1 to {GRID**2}")
    numbers = (*range(2, tokens, 2), tokens) if draw == "yes" else ()
    return Method(Plan((Layers(config.language.depth),)), compressor=FirstQueries(tokens, bool(numbers)), draws=numbers)
