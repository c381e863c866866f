"""Perceiver resampler (Alayrac et al., Flamingo, arXiv 2204.14198; after Jaegle et al., arXiv 2103.03206): latents read
the features of an image in several blocks of cross-attention and MLP.

Keys and values are features and latents together. Layers, widths and starts are those of lucidrains/flamingo-pytorch
(flamingo_pytorch.py), which has GELU where Flamingo squares a ReLU; the depth is Flamingo's. Ours: it stands before the
checkpoint's projector, so that a plain LLaVA checkpoint is a start; and an image is one frame, whose embedding in time
is left out.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.blocks import CrossAttention
from victor_jax.compression.grid import check_fewer
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import Dense, LayerNorm
from victor_jax.models.parameters import Normal, declare

HEADS, HEAD_DIM, WIDENING, EPS = 8, 64, 4, 1e-5


@dataclass(frozen=True)
class Latents(Compressor):
    count: int
    depth: int

    def tokens(self, config: VLMConfig) -> int:
        return self.count

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return Resampler(self.count, self.depth, dtype)


class Resampler(nn.Module):
    count: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, count, E]
        features = seen.features
        images, _, width = features.shape
        latents = self.param("latents", declare(Normal(1.0)), (self.count, width)).astype(self.dtype)
        latents = jnp.broadcast_to(latents, (images, self.count, width))
        for i in range(self.depth):
            latents = Block(self.dtype, name=f"blocks_{i}")(latents, features)
        return LayerNorm(EPS, name="norm")(latents)


class Block(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, latents: jax.Array, features: jax.Array) -> jax.Array:
        width = latents.shape[-1]
        queries = LayerNorm(EPS, name="norm_latents")(latents)
        read = jnp.concatenate([LayerNorm(EPS, name="norm_features")(features), queries], axis=1)
        latents += CrossAttention(HEADS, HEAD_DIM, False, self.dtype, name="attention")(queries, read, read)
        y = LayerNorm(EPS, name="norm_mlp")(latents)
        y = jax.nn.gelu(Dense(WIDENING * width, False, self.dtype, name="up")(y), approximate=False)
        return latents + Dense(width, False, self.dtype, axes=("tensor", "fsdp"), name="down")(y)


def perceiver(config: VLMConfig, tokens: Positive, depth: Positive = Positive(6)) -> Method:
    check_fewer(config, tokens)
    return Method(Plan((Layers(config.language.depth),)), compressor=Latents(tokens, depth))
