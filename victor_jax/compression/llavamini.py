"""LLaVA-Mini (Zhang et al., arXiv 2501.03895): text takes up the image before the tower, then one visual token stays.

Queries on a small grid compress the features. A few decoder layers of their own, the pre-fusion, run on the features of
a row's images and their compressed tokens, followed by the text; then the features leave, and the tower reads the
compressed tokens and the fused text. Answers, those before a later question too, are not seen there and keep the
embeddings of their words, as a new token does; so do rows without an image.

As in copies of the authors' code (ictnlp/LLaVA-Mini, llavamini/model/llavamini_arch.py): the whole text is behind the
images there, and positions are counted anew in the tower; the compressor has norms, projections and heads of 128, where
the paper's formula has none. Ours: the layers start from random weights, gradients reach the words' embeddings too, and
a text-only row of a batch is not fused with an empty image.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.blocks import GridQueries
from victor_jax.compression.grid import check_fewer, check_grid, square_root
from victor_jax.compression.plan import Compressor, Counts, Kind, Layers, Method, Plan, Positive, Size
from victor_jax.compression.steps import OfPrompt, without
from victor_jax.compression.stream import Flow, Seen, take
from victor_jax.models.config import LanguageConfig, VLMConfig
from victor_jax.models.language import LanguageLayer, View
from victor_jax.ops.attention import CACHE_AXES, Implementation
from victor_jax.ops.rope import inverse_frequencies, rotation

HEAD_DIM, EPS = 128, 1e-5


@dataclass(frozen=True)
class FeaturesAndCompressed(Compressor):
    side: int

    def tokens(self, config: VLMConfig) -> int:
        return config.features_per_image + self.side**2

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return Append(self.side, dtype)


class Append(nn.Module):
    side: int
    dtype: Any

    @nn.compact
    def __call__(self, seen: Seen) -> jax.Array:  # [I, P, E] -> [I, P + side * side, E]
        compressed = GridQueries(self.side, HEAD_DIM, EPS, self.dtype, name="reader")(seen.features)
        return jnp.concatenate([seen.features, compressed], axis=1)


@dataclass(frozen=True)
class Fuse(OfPrompt):
    """The pre-fusion; then the features of each image leave, and the compressed tokens behind them stay."""

    features: int  # of an image
    compressed: int

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        stream = stream.copy()
        stream[:, Kind.VISUAL] = stream[:, Kind.VISUAL] // (self.features + self.compressed) * self.compressed
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream = flow.stream
        index, is_answer = (take(flow.notes[name], stream.origin) for name in ("index", "answer"))
        is_visual = stream.kinds == Kind.VISUAL
        fused = (stream.kinds != Kind.PADDING) & ~is_answer & is_visual.any(axis=1, keepdims=True)
        # Images, then text, then what is not fused, which causality hides.
        order = jnp.argsort(jnp.where(fused, jnp.where(is_visual, 0, 1), 2), axis=1, stable=True)
        x = take(own(take(stream.x, order)), jnp.argsort(order, axis=1))
        stream = replace(stream, x=jnp.where(fused[..., None], x, stream.x))
        leaves = is_visual & (index % (self.features + self.compressed) < self.features)
        return without(replace(flow, stream=stream), leaves, size.stream, "renumber"), None


class PreFusion(nn.Module):
    config: LanguageConfig
    count: int
    dtype: Any
    implementation: Implementation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])
        view = View(*rotation(positions, inverse_frequencies(self.config.rope, self.config.head_dim)), mask=None)
        for i in range(self.count):
            # Training computes them again on the way back: no setting for remat reaches them.
            layer = nn.remat(LanguageLayer)(
                self.config, self.dtype, self.implementation, None, None, CACHE_AXES, name=f"layers_{i}"
            )
            (x, _), _ = layer((x, None), jnp.int32(0), view)
        return x


@dataclass(frozen=True)
class PreFusionOf:
    """Builds the pre-fusion. A value, so that equal written forms share compiled programs."""

    count: int

    def __call__(self, config: VLMConfig, dtype: Any, implementation: Implementation) -> nn.Module:
        return PreFusion(config.language, self.count, dtype, implementation)


def llavamini(config: VLMConfig, tokens: Positive = Positive(1), layers: Positive = Positive(4)) -> Method:
    check_grid(config)
    check_fewer(config, tokens)
    plan = Plan((Fuse(config.features_per_image, tokens), Layers(config.language.depth)))
    return Method(plan, compressor=FeaturesAndCompressed(square_root(tokens)), own=PreFusionOf(layers))
