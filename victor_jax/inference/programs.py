"""The compiled programs of inference, each of static shape."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Size
from victor_jax.compression.stream import Flow
from victor_jax.inference.platform import COMPILER_OPTIONS
from victor_jax.inference.sampling import Draws, draw
from victor_jax.inference.stops import IS_STOPPED
from victor_jax.models.language import Caches
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule

CHUNK = 512  # positions whose logits are held at once


# What is asked of the top: (module in apply, what is there, targets int32 [B, T of the input]) -> array [B, …].
End = Callable[[VLMModule, Flow, jax.Array], jax.Array]


@dataclass(frozen=True)
class TextLogits:
    """float32 [B, length, W], see VLMModule."""

    length: int

    def __call__(self, model: VLMModule, top: Flow, targets: jax.Array) -> jax.Array:
        return model.text_logits(top, self.length)


def log_probability(model: VLMModule, top: Flow, targets: jax.Array) -> jax.Array:
    """float32 [B]: the summed log-probability of each row's targets, which is minus the loss of training."""
    return -model.loss_of(top, targets, CHUNK)[0]


@functools.partial(jax.jit, static_argnames=("module", "sizes", "end"))
def full_pass(params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], end: End) -> jax.Array:
    def run(model: VLMModule) -> jax.Array:
        return end(model, model.run(batch, sizes)[0], batch.targets)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames=("module", "sizes", "room"), compiler_options=COMPILER_OPTIONS)
def prefill(
    params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], room: int
) -> tuple[jax.Array, Caches]:
    """One pass through the plan -> float32 [B, W] logits of the first new token, one cache per step of the plan."""
    return module.apply({"params": params}, batch, sizes, room, method=VLMModule.prefill)  # type: ignore[return-value]


class Decoding(NamedTuple):
    """Where the loop over new tokens stands."""

    number: jax.Array  # of the next token
    tokens: jax.Array  # int32 [B, max_new_tokens]
    token: jax.Array  # int32 [B]: the last one
    ended: jax.Array  # bool [B]
    said: jax.Array | None  # int32 [B]: the state of the text in the table of stop strings, at first 0
    caches: Caches


@functools.partial(
    jax.jit,
    static_argnames=("module", "max_new_tokens", "end_tokens", "pad_token"),
    donate_argnums=1,
    compiler_options=COMPILER_OPTIONS,
)
def decode(
    params: dict,
    caches: Caches,
    logits: jax.Array,  # float32 [B, W]: of the first new token
    draws: Draws | None,  # None: the most probable tokens
    stops: jax.Array | None,  # int32 [states, W], see stop_table; None: only end tokens end a row
    *,
    module: VLMModule,
    max_new_tokens: int,
    end_tokens: tuple[int, ...],
    pad_token: int,
) -> tuple[jax.Array, Caches]:
    """int32 [B, max_new_tokens], from one compiled loop until every row has ended; padding after a row's end.

    The caches are returned because a donated buffer is updated in place only where an output can reuse it.
    """
    rows = logits.shape[0]

    def take(state: Decoding, logits: jax.Array) -> Decoding:
        """The next token of each row."""
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32) if draws is None else draw(logits, draws, state.number)
        token = jnp.where(state.ended, pad_token, token)
        ended = state.ended | jnp.isin(token, jnp.array(end_tokens, jnp.int32))
        said = state.said
        if stops is not None:
            said = stops[said, token]
            ended |= said == IS_STOPPED
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.number))
        return Decoding(state.number + 1, tokens, token, ended, said, state.caches)

    def unfinished(state: Decoding) -> jax.Array:
        return (state.number < max_new_tokens) & ~jnp.all(state.ended)

    def advance(state: Decoding) -> Decoding:
        given = state.token, state.caches, state.number - 1
        logits, caches = module.apply({"params": params}, *given, method=VLMModule.decode)
        return take(state._replace(caches=caches), logits)  # type: ignore[arg-type]

    nothing = jnp.zeros(rows, jnp.int32)
    tokens = jnp.full((rows, max_new_tokens), pad_token, jnp.int32)
    start = Decoding(jnp.int32(0), tokens, nothing, nothing == 1, None if stops is None else nothing, caches)
    end = jax.lax.while_loop(unfinished, advance, take(start, logits))
    return end.tokens, end.caches
