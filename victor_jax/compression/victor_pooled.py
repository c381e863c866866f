"""Victor whose registers begin as pooled features: register r adds the mean of the r-th of M windows of its image.

The paper (Wen et al., arXiv 2410.14072) compares learned registers with average-pooled features. How they are pooled is
ours: the windows are those of windows.py, of projected visual tokens, and each mean is added to a learned register that
starts at zero. A method of its own, since its registers mean nothing without the means.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Counts, Kind, Method, Plan, Positive, Size
from victor_jax.compression.steps import OfPrompt, Positions
from victor_jax.compression.stream import Flow
from victor_jax.compression.withdrawal import victor
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class AddMeans(OfPrompt):
    """A step before the first layer. The registers of an image follow its visual tokens, one run of positions."""

    registers: int  # of an image

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        is_visual = flow.stream.kinds == Kind.VISUAL
        length = is_visual.shape[1]
        place = jnp.arange(length)[None]
        before, behind = jnp.pad(is_visual, ((0, 0), (1, 1)))[:, :-2], jnp.pad(is_visual, ((0, 0), (1, 1)))[:, 2:]
        first = jax.lax.cummax(jnp.where(is_visual & ~before, place, 0), axis=1)  # of each one's image
        end = jax.lax.cummin(jnp.where(is_visual & ~behind, place + 1, length), axis=1, reverse=True)
        window = ((place - first + 1) * self.registers - 1) // jnp.maximum(end - first, 1)
        register = jnp.where(is_visual, end + window, length)  # others are added nowhere
        added = jax.vmap(partial(jax.ops.segment_sum, num_segments=length))
        x = flow.stream.x
        sums = added(x.astype(jnp.float32), register)
        counts = added(is_visual.astype(jnp.float32), register)[..., None]
        x = (x + sums / jnp.maximum(counts, 1)).astype(x.dtype)
        return replace(flow, stream=replace(flow.stream, x=x)), None


def victor_pooled(config: VLMConfig, registers: Positive, layer: int, positions: Positions = "keep") -> Method:
    if registers > config.features_per_image:
        raise UserError(
            f"registers={registers} windows do not fit an image of {config.features_per_image} visual tokens: choose "
            f"at most {config.features_per_image}"
        )
    method = victor(config, registers, layer, positions, start="zeros")
    return replace(method, plan=Plan((AddMeans(registers), *method.plan.steps)))
