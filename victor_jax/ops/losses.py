"""Cross-entropy over a large vocabulary, in chunks of positions."""

import functools

import jax
import jax.numpy as jnp

IGNORE = -100  # the target of a position that is not supervised


def cross_entropy(x: jax.Array, head: jax.Array, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """x [B, T, D], head [D, W], targets int32 [B, T] -> float32 [B] summed loss, int32 [B] supervised positions.

    Sums, not means: means of means are wrong where rows or hosts hold different numbers of targets. One chunk of
    logits lives at a time, in the backward pass too.
    """
    B, T, D = x.shape
    chunk = min(chunk, T)
    short = -T % chunk
    x = jnp.pad(x, ((0, 0), (0, short), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, short)), constant_values=IGNORE)
    chunks = (T + short) // chunk
    x = x.reshape(B, chunks, chunk, D).swapaxes(0, 1)
    split = targets.reshape(B, chunks, chunk).swapaxes(0, 1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        states, wanted = part
        logits = jnp.einsum("BCD,DW->BCW", states, head, preferred_element_type=jnp.float32)
        supervised = wanted != IGNORE
        # A comparison fuses with the matrix product; the gradient of a gather would be a scatter into all logits.
        is_wanted = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == wanted[..., None]
        loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_wanted, logits, 0.0), axis=-1)
        return total + jnp.sum(jnp.where(supervised, loss, 0.0), axis=1), None

    total, _ = jax.lax.scan(add, jnp.zeros(B, jnp.float32), (x, split))
    return total, jnp.sum(targets != IGNORE, axis=1)
