"""DyVTE, dynamic visual-token exit (Wu et al., arXiv 2411.19628): the visual tokens leave when a gate says so.

After each of `exits` numbers of layers a small network looks at the question's states; at the first one that says so
all visual tokens of that row leave, for good, and the others keep their RoPE positions. The language tower is not
trained, the gates are: an exit is right where the likeliest words agree with the full model's for more than 99 % of the
answer and the loss is below 1.03 times its loss.

In the paper every layer has a gate: that is `exact`, with one group of rows, and one compiled program, for each layer
at which rows leave. By default five layers have one, from a quarter to three quarters of the tower, so that a batch is
cut into few groups: a row then leaves at the first of these whose gate says so, later than the paper's by what is
between them. The gates are trained on rows whose exits were all tried; the authors (DoubtedSteam/DyVTE) try one at
random per step.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from victor_jax.compression.choice import Chooser, Outcome
from victor_jax.compression.plan import Branch, Fork, Kind, Layers, Method, Plan, Positive, Step
from victor_jax.compression.steps import Leave
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.ops.attention import Implementation

AGREE, LOSS = 0.99, 1.03


class Gates(nn.Module):
    """One for each exit, by the number of layers below it."""

    exits: tuple[int, ...]

    def setup(self) -> None:
        self.gates = {str(layers): Chooser(2) for layers in self.exits}

    def choose(self, features: jax.Array, layers: int) -> jax.Array:
        """features [B, 2 D] -> float32 [B, 2]: to leave, or to stay."""
        return self.gates[str(layers)](features)


@dataclass(frozen=True)
class Own:
    exits: tuple[int, ...]

    def __call__(self, config: VLMConfig, dtype: Any, implementation: Implementation) -> nn.Module:
        return Gates(self.exits)


def dyvte(config: VLMConfig, exits: tuple[Positive, ...] | None = None, exact: bool = False) -> Method:
    depth = config.language.depth
    if exact and exits:
        raise UserError("exact has a gate after every layer: leave exits out")
    if exact:
        exits = tuple(map(Positive, range(1, depth)))
    chosen = exits or tuple(map(Positive, sorted({max(depth * part // 8, 1) for part in range(2, 7)} - {depth})))
    if list(chosen) != sorted(set(chosen)) or not chosen or chosen[-1] >= depth:
        raise UserError(
            f"exits={'-'.join(map(str, chosen))} must be rising numbers of layers below the language tower's {depth}"
        )
    stays = plan(depth, chosen, None)
    rest: Fork | Branch = Branch("full", stays)
    for number in reversed(range(len(chosen))):
        leaves = Branch(f"vtw:layer={chosen[number]}", plan(depth, chosen, chosen[number]))
        rest = Fork(number + 1, (leaves, rest))
    assert isinstance(rest, Fork)

    return Method(stays, own=Own(tuple(chosen)), fork=rest, keeps=keeps)


def plan(depth: int, exits: tuple[int, ...], exit: int | None) -> Plan:
    """Stages end at all of the exits, whichever is taken."""
    steps: list[Layers | Step] = []
    for first, last in zip((0, *exits), (*exits, depth), strict=True):
        steps.append(Layers(last - first))
        if last == exit:
            steps.append(Leave(Kind.VISUAL))
    return Plan(tuple(steps))


def keeps(found: Outcome, full: Outcome) -> np.ndarray:
    agrees = found.agreeing > AGREE * full.length
    return agrees & (found.log_probability > LOSS * full.log_probability)  # both are negative
