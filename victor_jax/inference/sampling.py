"""How a row's next token is drawn from its logits."""

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.errors import UserError
from victor_jax.limits import check_kind, check_whole, shown

MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Sampling:
    """At temperature 0 the most probable token is taken. Else one is drawn: logits are divided by the temperature, the
    `top_k` most probable tokens stay (0: all), and of these the most probable ones that hold `top_p` together."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, most in (("temperature", math.inf), ("top_p", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= most or value == math.inf:
                limit = "" if most == math.inf else f" to {most:g}"
                raise UserError(f"{name}={shown(value)} must be a number from 0{limit}")
        check_whole("top_k", self.top_k, least=0)


GREEDY = Sampling()


@flax.struct.dataclass
class Draws:
    """What the rows of a batch are drawn with. Values of a program, so that other ones do not compile another."""

    temperature: Any  # float32 [B]
    top_k: Any  # int32 [B]
    tail: Any  # float32 [B]: 1 - top_p
    seed: Any  # uint32 [B]


def draws_of(sampling: Sampling, seeds: Rows[int]) -> Draws | None:
    """None where nothing is drawn."""
    check_kind("sampling", sampling, Sampling, "a Sampling")
    if sampling.temperature == 0:
        return None

    def each(value: float, dtype: Any) -> np.ndarray:
        return np.full(len(seeds), value, dtype)

    coldest = float(np.finfo(np.float32).tiny)  # what is colder would divide by 0
    temperature = min(max(sampling.temperature, coldest), float(np.finfo(np.float32).max))
    return Draws(
        each(temperature, np.float32),
        each(sampling.top_k, np.int32),
        each(1 - sampling.top_p, np.float32),
        np.array(seeds, np.uint32),
    )


def check_seeds(seeds: Any, rows: int) -> Rows[int]:
    """One for each row; by default the row's number."""
    if seeds is None:
        return range(rows)
    if not isinstance(seeds, (list, tuple, range)) or len(seeds) != rows:
        raise UserError(f"{rows} prompts want {rows} seeds, a list with one for each")
    for number, seed in enumerate(seeds):
        check_whole(f"seeds[{number}]", seed, least=0, most=MOST_SEED)
    return seeds


def draw(logits: jax.Array, draws: Draws, number: jax.Array) -> jax.Array:
    """float32 [B, W], the number of the new token in its answer -> int32 [B]. A row depends on its own logits and seed,
    never on the batch that it is in."""
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / draws.temperature[:, None]
    limited = ((draws.top_k > 0) | (draws.tail > 0)).any()  # to sort a vocabulary takes longer than all the rest
    kept = jax.lax.cond(limited, _kept, lambda scaled, draws: jnp.ones_like(scaled, bool), scaled, draws)

    def noise(seed: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), number), logits.shape[1:])

    return jnp.argmax(jnp.where(kept, scaled + jax.vmap(noise)(draws.seed), -jnp.inf), axis=-1).astype(jnp.int32)


def _kept(scaled: jax.Array, draws: Draws) -> jax.Array:
    """bool [B, W]: as Hugging Face's warpers of transformers.generation leave it. Tokens as probable as the last of the
    top k stay too; of those as probable as the last that top_p needs, the ones with the higher ids."""
    size, ids = scaled.shape[-1], jax.lax.broadcasted_iota(jnp.int32, scaled.shape, 1)
    ascending, order = jax.lax.sort((scaled, ids), num_keys=1, is_stable=True)

    def at(values: jax.Array, place: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, place[:, None], axis=1)

    top_k = jnp.where(draws.top_k > 0, jnp.minimum(draws.top_k, size), size)
    held = jnp.where(ascending < at(ascending, size - top_k), -jnp.inf, ascending)
    leave = jnp.cumsum(jax.nn.softmax(held, axis=-1), axis=-1) <= draws.tail[:, None]
    first = jnp.minimum(leave.sum(axis=-1), size - 1)  # which one stays
    least = at(ascending, first)
    return (scaled > least) | ((scaled == least) & (ids >= at(order, first)))
