"""What trained compressors are made of: cross-attention, and the positions of a grid of patches."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.models.layers import Dense, LayerNorm
from victor_jax.models.parameters import Normal, declare
from victor_jax.ops.attention import attention

Interpolation = Literal["linear", "cubic"]


class CrossAttention(nn.Module):
    """Multi-head attention of queries to keys and values of their own; the output has the width of the queries."""

    heads: int
    head_dim: int
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """[I, R, E], [I, S, E], [I, S, E] -> [I, R, E]."""
        q, k, v = (
            Dense(self.heads * self.head_dim, self.bias, self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name, x in (("q", queries), ("k", keys), ("v", values))
        )
        y = attention(q, k, v, causal=False).reshape(*q.shape[:2], -1)
        return Dense(queries.shape[-1], self.bias, self.dtype, axes=("tensor", "fsdp"), name="o")(y)


class GridQueries(nn.Module):
    """A grid of learned queries reads the features in one cross-attention. Fixed positions on the image are added to
    queries and keys, after their norms; those of the features are the queries' ones, resized."""

    side: int
    head_dim: int
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:  # [I, P, E] -> [I, side * side, E]
        images, patches, width = features.shape
        positions = grid_positions(self.side, width)
        queries = self.param("queries", declare(Normal(0.02)), positions.shape)
        queries = LayerNorm(self.eps, name="norm_queries")(queries) + positions
        values = LayerNorm(self.eps, name="norm_features")(features)
        keys = values + resized(positions, math.isqrt(patches), "cubic").astype(values.dtype)[None]
        heads = head_count(width, self.head_dim)
        attend = CrossAttention(heads, width // heads, True, self.dtype, name="attention")
        return attend(jnp.broadcast_to(queries, (images, *queries.shape)), keys, values)


def head_count(width: int, head_dim: int) -> int:
    """Heads of at least this width, as many as divide `width`; a narrower one has one head."""
    return next(heads for heads in range(max(width // head_dim, 1), 0, -1) if width % heads == 0)


def grid_positions(side: int, width: int) -> np.ndarray:
    """float32 [side * side, width]: sine and cosine of the column, then of the row, as MAE has them."""
    assert width % 4 == 0, "a quarter of the width for each of sine and cosine, of column and row"
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * frequencies
    of_one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, width / 2]
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.concatenate([of_one[columns], of_one[rows]], axis=1).astype(np.float32)


def resized(grid: jax.Array | np.ndarray, side: int, method: Interpolation) -> jax.Array:
    """A square grid [..., P, E] -> float32 [..., side * side, E], interpolated as PyTorch does: without smoothing where
    it shrinks."""
    old, width = math.isqrt(grid.shape[-2]), grid.shape[-1]
    along = interpolation(old, side, method)
    square = jnp.asarray(grid, jnp.float32).reshape(*grid.shape[:-2], old, old, width)
    found = jnp.einsum("...rcE,yr,xc->...yxE", square, along, along, precision="highest")
    return found.reshape(*grid.shape[:-2], side * side, width)


def interpolation(old: int, new: int, method: Interpolation) -> np.ndarray:
    """float32 [new, old]: how much each old place on a line adds to each new one. Beyond the ends is the last one."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old), np.float32)
    for offset in range(-1, 3):
        distance = np.abs(centres - (first + offset))
        weight = np.maximum(1 - distance, 0) if method == "linear" else _cubic(distance)
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), weight)
    return weights


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel with PyTorch's parameter."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
