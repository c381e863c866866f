"""The compiled programs of inference, each of static shape."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Size
from victor_jax.compression.stream import Flow
from victor_jax.inference.platform import COMPILER_OPTIONS
from victor_jax.inference.sampling import Draws, draw
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

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32) if draws is None else draw(logits, draws, step)

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
