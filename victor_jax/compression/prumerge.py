"""LLaVA-PruMerge and PruMerge+ (Shang et al., arXiv 2403.15388): patches that stay take up what is like them.

In the vision layer after the one that gives the features, with all heads as one: those patches stay whose attention
from the class token is an outlier (above the third quartile by 1.5 interquartile ranges), so each image has a number of
its own. Each adds the features of its nearest others by cosine of keys, weighted by their attention; one more token is
the weighted sum of all that did not stay. They are in order of falling attention. PruMerge+ also keeps evenly spaced
patches, about three for each outlier, behind those. Untrained or trained. As in 42Shawn/LLaVA-PruMerge:

    prumerge                         the outliers of each image
    prumerge:most=48                 at most 48 tokens: of more outliers, those with the most attention
    prumerge:tokens=64               63 patches of every image, outliers or not
    prumergeplus:most=192            as many outliers as leave room in 192 tokens for the evenly spaced patches
    prumergeplus:best=13,step=11     the 13 most attended patches and every 11th

The last is the form that THU-MIG/VTC-CLS compares with: 13 and 11, 40 and 6, 95 and 3 for 64, 128 and 256 tokens, a
few more or less, since a spaced patch that stays anyway is left out. The authors' fixed share for training (72 and 8)
begins at patch 4, keeps doubles and takes 16 neighbours; that is not here. Without outliers their PruMerge+
fails; here patches are spaced as for one outlier.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.grid import check_grid
from victor_jax.compression.patches import (
    class_attention,
    cosines,
    features_layer,
    highest,
    marked,
    weighted_sums,
)
from victor_jax.compression.plan import Compressor, Layers, Method, Plan, Positive
from victor_jax.compression.stream import Seen, take
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class KeepAndMerge(Compressor):
    best: int  # patches that stay for their attention, at most where only outliers do
    outliers: bool
    neighbours: int
    step: int = 0  # between the patches that stay for their place, at least where it follows from the outliers; 0: none

    def tokens(self, config: VLMConfig) -> int:
        return self.best + spaced(config.vision.patches, self.step) + 1

    def module(self, config: VLMConfig, dtype: Any) -> nn.Module:
        return PruMerge(self)

    def looked(self, config: VLMConfig) -> range:
        layer = features_layer(config) + 1
        return range(layer, layer + 1)

    def look(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k = (x.reshape(*x.shape[:2], 1, -1) for x in (q, k))
        return class_attention(q, k), k[:, 1:, 0]  # [I, P], [I, P, E]


class PruMerge(nn.Module):
    method: KeepAndMerge

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """[I, P, E] -> [I, R, E], and which of them are used."""
        (attention,), (keys,) = seen.looks  # of one layer
        patches, (kept, used) = attention.shape[1], self.choose(attention)
        itself = jax.nn.one_hot(kept, patches, dtype=bool)  # [I, R - 1, P]
        order = jnp.argsort(jnp.where(itself, jnp.inf, -cosines(take(keys, kept), keys)), axis=2)
        is_near = jnp.argsort(order, axis=2) < self.method.neighbours
        takes_up = jnp.where(itself, 1.0, jnp.where(is_near, attention[:, None], 0.0))
        left = jnp.where(marked(kept, used, patches), 0.0, attention)
        tokens = weighted_sums(jnp.concatenate([takes_up, left[:, None]], axis=1), seen.features)
        return tokens, jnp.pad(used, ((0, 0), (0, 1)), constant_values=True)

    def choose(self, attention: jax.Array) -> tuple[jax.Array, jax.Array]:
        """attention [I, P] -> the patches that stay, int32 [I, R - 1], and which of these are used."""
        m, (images, patches) = self.method, attention.shape
        count = jnp.full((images, 1), m.best)
        if m.outliers:
            first, third = jnp.percentile(attention, jnp.array([25.0, 75.0]), axis=1, keepdims=True)
            is_outlier = attention > third + 1.5 * (third - first)
            count = jnp.minimum(is_outlier.sum(axis=1, keepdims=True), m.best)
        kept = highest(attention, m.best)
        used = jnp.arange(m.best)[None] < count
        if not m.step:
            return kept, used
        step = spacing(patches, jnp.maximum(count, 1)) if m.outliers else jnp.full_like(count, m.step)
        places = jnp.minimum(jnp.arange(spaced(patches, m.step))[None] * step, patches - 1)
        is_new = (places < patches - 1) & ~take(marked(kept, used, patches), places)
        return jnp.concatenate([kept, places], axis=1), jnp.concatenate([used, is_new], axis=1)


def prumerge(config: VLMConfig, tokens: int = 0, most: int = 0, neighbours: Positive = Positive(32)) -> Method:
    if tokens and most:
        raise UserError("prumerge takes tokens=…, a fixed number, or most=…, the most that an image may have, not both")
    patches = config.vision.patches
    limit = patches if tokens else most_outliers(patches)
    kept = min((tokens or most or patches) - 1, limit)
    return merging(config, KeepAndMerge(kept, not tokens, neighbours))


def prumergeplus(
    config: VLMConfig, most: int = 0, best: int = 0, step: int = 0, neighbours: Positive = Positive(32)
) -> Method:
    if bool(most) == bool(best) or bool(best) != bool(step):
        raise UserError("prumergeplus takes most=…, the most tokens that an image may have, or best=… and step=…")
    patches = config.vision.patches
    if best:
        return merging(config, KeepAndMerge(min(best, patches), False, neighbours, step))
    sizes = {n: n + spaced(patches, spacing(patches, n)) + 1 for n in range(1, most_outliers(patches) + 1)}
    if most < sizes[1]:
        raise UserError(f"most={most} has no room for the patches that are evenly spaced: choose {sizes[1]} or more")
    best = max(n for n, size in sizes.items() if size <= most)
    return merging(config, KeepAndMerge(best, True, neighbours, spacing(patches, best)))


def merging(config: VLMConfig, compressor: KeepAndMerge) -> Method:
    check_grid(config)
    if features_layer(config) + 1 == config.vision.depth:
        raise UserError(
            "this compression reads the vision layer after the one that gives the features, but this model takes them "
            "from the last layer: choose one that reads the same layer, such as visionzip"
        )
    return Method(Plan((Layers(config.language.depth),)), compressor=compressor)


def most_outliers(patches: int) -> int:
    """What can lie above the third quartile, in a square of patches."""
    return max(patches // 4, 1)


def spacing(patches: int, outliers: Any) -> Any:
    """Between evenly spaced patches, about three for each outlier."""
    return patches // outliers // 3


def spaced(patches: int, step: int) -> int:
    """How many evenly spaced patches there are; the authors' range leaves out the last patch of an image."""
    return len(range(0, patches - 1, step)) if step else 0
