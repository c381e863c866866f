"""Cuts on arrays. One gather serves every cut; array order stays sequence order, so that plain causal
attention is right on both sides."""

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Cut, Kind


def survivors(stays: jax.Array, length: int) -> jax.Array:
    """stays bool [B, T] -> int32 [B, length]: where the staying positions stand, in order, then others."""
    return jnp.argsort(~stays, axis=1, stable=True)[:, :length]


def take(array: jax.Array, order: jax.Array) -> jax.Array:
    """array [B, T, ...], order int32 [B, T'] -> [B, T', ...]."""
    order = order.reshape(order.shape + (1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, order, axis=1)


def apply(
    cut: Cut, length: int, x: jax.Array, kinds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, T, D], kinds and positions int32 [B, T] -> the same three at `length`, padding to the right."""
    stays = (kinds != Kind.PADDING) & (kinds != cut.drop)
    order = survivors(stays, length)
    kinds = jnp.where(take(stays, order), take(kinds, order), Kind.PADDING)
    if cut.positions == "keep":
        positions = take(positions, order)
    else:
        positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype)[None], kinds.shape)
    return take(x, order), kinds, positions
