"""Controls for Victor: as many of an image's own tokens in place of its registers. Trained as usual, or untrained.

`last` keeps the last ones of each image (the control of Victor's paper, arXiv 2410.14072), `random` some at places that
follow from the seed alone: the same for every image, in training and in answering. Numbers are per image, as registers
are, so the budgets are equal. The last position of a prompt may leave, as in VTW.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Counts, Kind, Layers, Method, Plan, Positive, Size
from victor_jax.compression.steps import OfPrompt, Positions, without
from victor_jax.compression.stream import Flow, Stream, take
from victor_jax.compression.withdrawal import check_layer
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class KeepPlaces(OfPrompt):
    """Of each image the visual tokens at these places stay."""

    places: tuple[int, ...]  # ascending
    of: int  # visual tokens of an image
    positions: Positions

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        stream = stream.copy()
        stream[:, Kind.VISUAL] = stream[:, Kind.VISUAL] // self.of * len(self.places)
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream = flow.stream
        is_visual = stream.kinds == Kind.VISUAL
        index = jnp.where(is_visual, take(flow.notes["index"], stream.origin), 0)
        is_kept = jnp.array(np.isin(np.arange(self.of), self.places))[index % self.of]
        flow = replace(flow, stream=self.gather(stream, index, is_visual))
        return without(flow, is_visual & ~is_kept, size.stream, self.positions), None

    def gather(self, stream: Stream, index: jax.Array, is_visual: jax.Array) -> Stream:
        """The stream with whatever those that stay take over from others."""
        return stream


def last(config: VLMConfig, tokens: Positive, layer: int, positions: Positions = "keep") -> Method:
    of = config.features_per_image
    places = range(max(of - tokens, 0), of)
    return keeping(KeepPlaces(tuple(places), of, positions), layer, config.language.depth)


def random(config: VLMConfig, tokens: Positive, layer: int, seed: int = 0, positions: Positions = "keep") -> Method:
    of = config.features_per_image
    drawn = np.argsort(np.random.Philox(key=seed).random_raw(of), kind="stable")[:tokens]
    places = sorted(drawn.tolist())
    return keeping(KeepPlaces(tuple(places), of, positions), layer, config.language.depth)


def keeping(step: KeepPlaces, layer: int, depth: int) -> Method:
    """The step at the input of layer `layer`."""
    check_layer(layer, depth, lowest=0)
    below = (Layers(layer),) if layer else ()
    steps = (*below, step, Layers(depth - layer)) if layer < depth else (Layers(depth),)
    return Method(Plan(steps), whole_images=True)
