"""The adapter of Qwen-VL (Bai et al., arXiv 2308.12966): learned queries read the features in one cross-attention.

Queries and features lie on grids over the image, with fixed 2-D sine-cosine positions. As in the authors' code
(`visual.py` of Qwen/Qwen-VL): heads of 128, a norm after the attention. Ours: it has the width of the features and
stands before the checkpoint's projector, which replaces the matrices around it, so that a plain LLaVA checkpoint is a
start.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from victor_jax.compression.blocks import GridQueries
from victor_jax.compression.grid import check_fewer, check_grid, square_root
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import LayerNorm

HEAD_DIM, EPS = 128, 1e-6


@dataclass(frozen=True)
class Adapted(Compressor):
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
        read = GridQueries(self.side, HEAD_DIM, EPS, self.dtype, name="reader")(seen.features)
        return LayerNorm(EPS, name="norm")(read)


def qwenvl(config: VLMConfig, tokens: Positive) -> Method:
    check_grid(config)
    check_fewer(config, tokens)
    return Method(Plan((Layers(config.language.depth),)), compressor=Adapted(square_root(tokens)))
