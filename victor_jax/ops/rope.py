"""Rotary position embedding in the split-half form of Hugging Face: weights need no permutation."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones untouched, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class Rope:
    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """float32 [H / 2]: radians per position of each pair of channels."""
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    match rope.scaling:
        case LinearScaling(factor):
            frequencies = frequencies / factor
        case Llama3Scaling(factor, low, high, original):
            turns = original * frequencies / (2 * math.pi)  # full turns within the original context
            untouched = np.clip((turns - low) / (high - low), 0.0, 1.0)
            frequencies = frequencies * (untouched + (1.0 - untouched) / factor)
    return frequencies.astype(np.float32)


def rotation(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """positions int32 [B, T], frequencies [H / 2] -> cosine and sine, float32 [B, T, 1, H / 2]."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """x [B, T, N, H] turned by the angles of its positions; computed in float32, returned in x.dtype."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)
    return turned.astype(x.dtype)
