"""What flows up the tower, as arrays. Rows are closed up to the left and array order is sequence order, so that plain
causal attention is right in every layer."""

from dataclasses import field, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Kind


@flax.struct.dataclass
class Stream:
    x: jax.Array  # [B, T, D]
    kinds: jax.Array  # int32 [B, T]: Kind
    positions: jax.Array  # int32 [B, T]: RoPE position
    origin: jax.Array  # int32 [B, T]: index in the input sequence, to find what belongs to it (a label)


@flax.struct.dataclass
class Flow:
    """The state between two steps of a plan."""

    stream: Stream
    prompt_end: jax.Array  # int32 [B]: origin of the last position of the prompt
    new: jax.Array  # int32 [B]: the RoPE position of a row's first new token
    parked: Stream | None = None  # positions that wait beside the stream
    scores: jax.Array | None = None  # [L, B, …]: of the layers before, where the plan asks for one
    # What steps know of positions, by origin: [B, T of the input, …]. "index" is that of the input sequence, "answer"
    # whether a position holds a supervised token.
    notes: dict[str, jax.Array] = field(default_factory=dict)


@flax.struct.dataclass
class Where:
    """What a score may know of the positions whose queries and keys it is given."""

    kinds: jax.Array  # int32 [B, T]
    positions: jax.Array  # int32 [B, T]
    prompt_end: jax.Array  # int32 [B]: index in the stream
    notes: dict[str, jax.Array]  # of Flow, each of the positions in the stream [B, T, …]
    window: int | None = flax.struct.field(pytree_node=False)  # of sliding-window attention, in RoPE positions

    def visible(self, rows: jax.Array) -> jax.Array:
        """rows int32 [B, R], indices of queries -> bool [B, R, T]: the keys that each may attend to."""
        sees = jnp.arange(self.kinds.shape[1])[None, None] <= rows[..., None]
        sees &= (self.kinds != Kind.PADDING)[:, None]
        if self.window is not None:
            sees &= self.positions[:, None] > take(self.positions, rows)[..., None] - self.window
        return sees


@flax.struct.dataclass
class Seen:
    """What the vision tower made of images, for a compressor."""

    features: jax.Array  # [I, P, E]: what the projector reads, or [I, P, D]: what it gives
    levels: dict[int, jax.Array]  # [I, 1 + P, E] of each level that the compressor asks for, the class token first
    looks: Any  # what its `look` found in each layer, in order: [L, I, …]


def take(array: jax.Array, order: jax.Array) -> jax.Array:
    """array [B, T, ...], order int32 [B, T'] -> [B, T', ...]."""
    order = order.reshape(order.shape + (1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, order, axis=1)


def survivors(stays: jax.Array, length: int) -> jax.Array:
    """stays bool [B, T] -> int32 [B, length]: the indices that stay, in order, then others."""
    return jnp.argsort(~stays, axis=1, stable=True)[:, :length]


def select(stream: Stream, stays: jax.Array, length: int) -> Stream:
    """The positions that stay, bool [B, T], closed up to the left; padding fills the row to `length`."""
    order = survivors(stays, length)
    chosen = jax.tree.map(lambda array: take(array, order), stream)
    return replace(chosen, kinds=jnp.where(take(stays, order), chosen.kinds, Kind.PADDING))


def close_up(stream: Stream, stays: jax.Array) -> Stream:
    """The positions that stay, bool [B, T], counted anew, as if the others had never been."""
    return count_anew(select(stream, stays & (stream.kinds != Kind.PADDING), stays.shape[1]))


def count_anew(stream: Stream) -> Stream:
    """RoPE positions along the row, as if nothing had left."""
    counted = jnp.arange(stream.kinds.shape[1], dtype=jnp.int32)[None]
    return replace(stream, positions=jnp.broadcast_to(counted, stream.kinds.shape))


def merge(a: Stream, b: Stream, length: int) -> Stream:
    """Two streams in sequence order, padding at the right."""
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=1), a, b)
    last = jnp.iinfo(jnp.int32).max
    order = jnp.argsort(jnp.where(both.kinds == Kind.PADDING, last, both.origin), axis=1, stable=True)[:, :length]
    return jax.tree.map(lambda array: take(array, order), both)
