"""VideoLLM-MoD (Wu et al., arXiv 2408.16730): mixture of depths for visual tokens.

In every other layer a learned linear router chooses a share of each image's tokens. They go through the layer with the
text; the others skip it by the residual path and come back. So no token is lost, and such a layer computes and caches
few of them. There is no public code, and the paper's abstract and summaries leave much open.

Ours: the router reads the state before the layer, r = x . w, and the layer changes a chosen token by 2 sigmoid(r) times
what it would change it: so the router has a gradient, and a new one leaves the layer nearly as it is. The share of an
image is rounded down; images without text between them count as one. A prompt's last position is always chosen. The
last layer is never routed: nothing reads its visual tokens, so that its router would have no gradient.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Counts, Kind, Layers, Method, Percent, Plan, Positive, Size, Step
from victor_jax.compression.steps import OfPrompt
from victor_jax.compression.stream import Flow, select, take
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.parameters import Normal, declare
from victor_jax.ops.attention import Implementation


class Routers(nn.Module):
    """One vector for each layer that is routed."""

    @nn.compact
    def __call__(self, x: jax.Array, layer: int) -> jax.Array:  # [B, T, D] -> float32 [B, T]
        start = declare(Normal(1e-3))  # small, so that 2 sigmoid(r) starts near 1
        w = self.param(f"layer_{layer}", start, x.shape[-1:])
        return jnp.einsum("BTD,D->BT", x, w.astype(x.dtype), preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class Route(OfPrompt):
    """The stream waits as it is; a shorter one goes on, without the visual tokens that the router does not choose."""

    layer: int  # the router's
    percent: int

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        routed = stream.copy()
        routed[:, Kind.VISUAL] = stream[:, Kind.VISUAL] * self.percent // 100
        return routed, stream

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream = flow.stream
        is_visual, r = stream.kinds == Kind.VISUAL, own(stream.x, self.layer)
        is_end = stream.origin == flow.prompt_end[:, None]
        chosen = best_of_images(jnp.where(is_end, jnp.inf, r), is_visual, self.percent)
        goes = jnp.where(is_visual, chosen, stream.kinds != Kind.PADDING)
        here = {"place": jnp.cumsum(goes, axis=1) - 1, "weight": jnp.where(chosen, 2 * jax.nn.sigmoid(r), 0.0)}
        notes = {
            name: jnp.put_along_axis(jnp.zeros_like(values), stream.origin, values, axis=1, inplace=False)
            for name, values in here.items()
        }
        routed = select(stream, goes, size.stream)
        return replace(flow, stream=routed, parked=stream, notes=flow.notes | notes), None


@dataclass(frozen=True)
class Rejoin(OfPrompt):
    """The stream that waited comes back, changed where its positions went through the layer."""

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        return parked, np.zeros_like(parked)

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        before = flow.parked
        assert before is not None, "a Rejoin follows a Route"
        place, weight = (take(flow.notes[name], before.origin) for name in ("place", "weight"))
        after = take(flow.stream.x, place).astype(jnp.float32)
        mixed = before.x + weight[..., None] * (after - before.x)
        x = jnp.where((before.kinds == Kind.VISUAL)[..., None], mixed, after)
        return replace(flow, stream=replace(before, x=x.astype(before.x.dtype)), parked=None), None


def best_of_images(scores: jax.Array, is_visual: jax.Array, percent: int) -> jax.Array:
    """bool [B, T]: of each run of visual positions so many percent, those with the highest scores; of equal ones the
    first."""
    before = jnp.pad(is_visual, ((0, 0), (1, 0)))[:, :-1]
    image = jnp.where(is_visual, jnp.cumsum(is_visual & ~before, axis=1), 0)
    same = (image[:, :, None] == image[:, None, :]) & is_visual[:, :, None]
    higher = scores[:, None, :] > scores[:, :, None]
    earlier = jnp.arange(scores.shape[1])[None, None, :] < jnp.arange(scores.shape[1])[None, :, None]
    better = higher | (scores[:, None, :] == scores[:, :, None]) & earlier
    return (same & better).sum(axis=2) < same.sum(axis=2) * percent // 100


def own(config: VLMConfig, dtype: Any, implementation: Implementation) -> nn.Module:
    return Routers()


def mod(config: VLMConfig, percent: Percent = Percent(20), every: Positive = Positive(2), first: int = 1) -> Method:
    depth = config.language.depth
    if percent == 100:
        return Method(Plan((Layers(depth),)))
    if not first < depth - 1:
        raise UserError(
            f"first={first} leaves no layer to route below the last of {depth}: choose 0 to {depth - 2} layers that "
            "run before the first routed one"
        )
    steps: list[Layers | Step] = []
    ran = 0
    for layer in range(first, depth - 1, every):
        if ran < layer:
            steps.append(Layers(layer - ran))
        steps += [Route(layer, percent), Layers(1), Rejoin()]
        ran = layer + 1
    return Method(Plan((*steps, Layers(depth - ran))), own=own)
