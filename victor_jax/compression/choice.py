"""What a method needs that chooses a plan for each row: a small network that looks at the question where rows part.

Its form is that of DyVTE's gates (Wu et al., arXiv 2411.19628; DoubtedSteam/DyVTE): the mean of the states of the
question's words, without the last one, and the state of the last, through two linear layers without bias.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Kind
from victor_jax.compression.stream import Flow, take
from victor_jax.models.parameters import Uniform, declare

HIDDEN = 2048


class Chooser(nn.Module):
    """float32, since it is small and its decisions should not hang on rounding."""

    choices: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:  # [B, 2 D] -> float32 [B, choices]
        up = self.param("up", declare(xavier(features.shape[-1], HIDDEN)), (features.shape[-1], HIDDEN))
        down = self.param("down", declare(xavier(HIDDEN, self.choices)), (HIDDEN, self.choices))
        hidden = jax.nn.gelu(features @ up.astype(jnp.float32), approximate=False)
        return hidden @ down.astype(jnp.float32)


def xavier(inputs: int, outputs: int) -> Uniform:
    return Uniform((6 / (inputs + outputs)) ** 0.5)


def question_features(flow: Flow) -> jax.Array:
    """float32 [B, 2 D]: of the prompt's words behind its first image. The mean of no words is zero."""
    stream, end = flow.stream, flow.prompt_end[:, None]
    kinds = flow.notes["kind"]
    first = jnp.where((kinds == Kind.VISUAL).any(axis=1), jnp.argmax(kinds == Kind.VISUAL, axis=1), 0)
    is_asked = (stream.kinds != Kind.PADDING) & (stream.origin <= end)
    last = jnp.maximum(is_asked.sum(axis=1, keepdims=True) - 1, 0)
    is_word = is_asked & (stream.kinds == Kind.TEXT) & (stream.origin >= first[:, None])
    is_word &= jnp.arange(is_word.shape[1])[None] < last
    x = stream.x.astype(jnp.float32)
    words = jnp.einsum("BT,BTD->BD", is_word.astype(jnp.float32), x, precision="highest")
    mean = words / jnp.maximum(is_word.sum(axis=1), 1)[:, None]
    return jnp.concatenate([mean, take(x, last)[:, 0]], axis=1)


@dataclass(frozen=True)
class Outcome:
    """What a plan made of answers that are known, one row each."""

    log_probability: np.ndarray  # float [B]: of the answer, summed
    length: np.ndarray  # int [B]: of the answer, in tokens
    agreeing: np.ndarray  # int [B]: tokens of it for which the method's own plan names the same as likeliest
