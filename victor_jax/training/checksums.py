"""A number per array that tells whether one byte of it has changed: computed where the array is, at the speed of its
memory, the same on every mesh. Orbax keeps none for the values that it writes."""

import jax
import jax.numpy as jnp

Leaves = dict[str, jax.Array]  # by path


@jax.jit  # all in one program: many small ones that exchange sums at once can block each other on CPU devices
def checksums(leaves: Leaves) -> dict[str, jax.Array]:
    """uint32 of each array: its bits, each element times an odd number that belongs to its place, summed modulo 2^32.
    One element that changes always changes the sum, two that change places nearly always."""
    return {path: _checksum(leaf) for path, leaf in leaves.items()}


def _checksum(array: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (place * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)
