"""Prefill and decode as two compiled programs of static shape."""

import functools

import jax
import jax.numpy as jnp

from victor_jax.models.language import StageCache
from victor_jax.models.sequence import Sequence
from victor_jax.models.vlm import VLMModule


@functools.partial(jax.jit, static_argnames=("module", "lengths", "text_length"))
def text_logits(
    params: dict,
    sequence: Sequence,
    pixels: jax.Array | None,
    slots: jax.Array | None,
    *,
    module: VLMModule,
    lengths: tuple[int, ...],
    text_length: int,
) -> jax.Array:
    """float32 [B, text_length, W], see VLMModule."""
    return module.apply({"params": params}, sequence, pixels, slots, lengths, text_length)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames=("module", "lengths", "room"))
def prefill(
    params: dict,
    sequence: Sequence,
    pixels: jax.Array | None,
    slots: jax.Array | None,
    *,
    module: VLMModule,
    lengths: tuple[int, ...],
    room: int,
) -> tuple[jax.Array, list[StageCache]]:
    """One pass through the plan -> float32 [B, W] logits of the first new token, one cache per stage."""
    return module.apply(  # type: ignore[return-value]
        {"params": params}, sequence, pixels, slots, lengths, room, method=VLMModule.prefill
    )


@functools.partial(
    jax.jit,
    static_argnames=("module", "max_new_tokens", "end_tokens", "pad_token", "greedy"),
    donate_argnums=1,
)
def decode(
    params: dict,
    caches: list[StageCache],
    logits: jax.Array,  # float32 [B, W]: of the first new token
    temperature: jax.Array,
    key: jax.Array,
    *,
    module: VLMModule,
    max_new_tokens: int,
    end_tokens: tuple[int, ...],
    pad_token: int,
    greedy: bool,
) -> tuple[jax.Array, list[StageCache]]:
    """int32 [B, max_new_tokens], from one compiled loop until every row has ended; padding after a row's end.

    The caches come back because a donated buffer is used in place only where an output takes it over.
    """
    rows = logits.shape[0]

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        step_key = jax.random.fold_in(key, step)
        return jax.random.categorical(step_key, logits / temperature, axis=-1).astype(jnp.int32)

    def write(
        tokens: jax.Array, ended: jax.Array, logits: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        token = jnp.where(ended, pad_token, choose(logits, step))
        ends = jnp.isin(token, jnp.array(end_tokens, jnp.int32))
        return jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step)), ended | ends, token

    def unfinished(state: tuple) -> jax.Array:
        step, _, ended, _, _ = state
        return (step < max_new_tokens) & ~jnp.all(ended)

    def advance(state: tuple) -> tuple:
        step, tokens, ended, token, caches = state
        logits, caches = module.apply({"params": params}, token, caches, step - 1, method=VLMModule.decode)
        tokens, ended, token = write(tokens, ended, logits, step)
        return step + 1, tokens, ended, token, caches

    tokens = jnp.full((rows, max_new_tokens), pad_token, jnp.int32)
    tokens, ended, token = write(tokens, jnp.zeros(rows, bool), logits, jnp.int32(0))
    state = (jnp.int32(1), tokens, ended, token, caches)
    _, tokens, _, _, caches = jax.lax.while_loop(unfinished, advance, state)
    return tokens, caches
