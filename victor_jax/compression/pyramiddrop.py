"""PyramidDrop (Xing et al., arXiv 2410.17247): the visual tokens become fewer and fewer on the way up.

After 8, 16 and 24 layers half of those that are left stay: those that the last position of the prompt attends to most,
mean over heads, by the queries and keys that the next layer would have. No gradient passes through that choice. As in
the authors' code (Cooperx521/PyramidDrop), the positions that stay are counted anew after each cut.

Their code takes a list of shares of the original number; here it is one share of those that are left, rounded down each
time (576, 288, 144, 72 in both). In training it averages the attention of all positions that precede an answer; here it
is that of the first such position, so that training, `score` and answering choose alike. It takes one image per row;
here the images of a row share what stays.
"""

from collections.abc import Sequence
from itertools import pairwise

from victor_jax.compression.fastv import PromptAttention
from victor_jax.compression.plan import Kind, Layers, Method, Percent, Plan, Step
from victor_jax.compression.steps import Leave, Positions
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def pyramiddrop(
    config: VLMConfig,
    layers: tuple[int, ...] = (8, 16, 24),
    percent: Percent = Percent(50),
    positions: Positions = "renumber",
) -> Method:
    depth = config.language.depth
    check_cuts(layers, 0, depth)
    best = Leave(Kind.VISUAL, percent=percent, positions=positions)
    return Method(Plan(pyramid(0, dict.fromkeys(layers, best), depth)))


def pyramid(start: int, cuts: dict[int, Leave], end: int) -> tuple[Layers | Step, ...]:
    """Layers `start` to `end`. After so many layers as each cut says, some positions leave by the score of the next."""
    steps: list[Layers | Step] = []
    for layer, leave in cuts.items():
        steps += [Layers(layer - start, PromptAttention(), ahead=True), leave]
        start = layer
    return (*steps, Layers(end - start))


def check_cuts(layers: Sequence[int], start: int, end: int) -> None:
    if not all(below < above for below, above in pairwise((start, *layers, end))):
        raise UserError(
            f"layers={'-'.join(map(str, layers))} does not fit layers {start} to {end} of the language tower: choose "
            f"rising numbers from {start + 1} to {end - 1}"
        )
