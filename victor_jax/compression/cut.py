"""Cuts on arrays. One gather serves every cut; array order stays sequence order, so that plain causal
attention is right on both sides."""

import flax.struct
import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Cut, Kind


@flax.struct.dataclass
class Stream:
    """What flows up the tower, position by position."""

    x: jax.Array  # [B, T, D]
    kinds: jax.Array  # int32 [B, T]: Kind
    positions: jax.Array  # int32 [B, T]: RoPE position
    origin: jax.Array  # int32 [B, T]: where it stood at the bottom, to find what belongs to it (a label)


def survivors(stays: jax.Array, length: int) -> jax.Array:
    """stays bool [B, T] -> int32 [B, length]: where the staying positions stand, in order, then others."""
    return jnp.argsort(~stays, axis=1, stable=True)[:, :length]


def take(array: jax.Array, order: jax.Array) -> jax.Array:
    """array [B, T, ...], order int32 [B, T'] -> [B, T', ...]."""
    order = order.reshape(order.shape + (1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, order, axis=1)


def apply(cut: Cut, length: int, stream: Stream) -> Stream:
    """The stream at `length`, rows closed up to the left, padding to the right."""
    stays = (stream.kinds != Kind.PADDING) & (stream.kinds != cut.drop)
    order = survivors(stays, length)
    kinds = jnp.where(take(stays, order), take(stream.kinds, order), Kind.PADDING)
    if cut.positions == "keep":
        positions = take(stream.positions, order)
    else:
        positions = jnp.broadcast_to(jnp.arange(length, dtype=stream.positions.dtype)[None], kinds.shape)
    return Stream(take(stream.x, order), kinds, positions, take(stream.origin, order))
