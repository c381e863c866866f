"""The plan of lengths: stages of layers, and the cuts between them.

    full        [32 layers]
    victor      [3 layers]  cut: the visual tokens end here, registers stay  [29 layers]
    vtw         [16 layers] cut: the visual tokens end here                  [16 layers]

A plan is known before anything is compiled. It says nothing about weights, batches or methods.
"""

import enum
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Lengths after a cut are rounded up to this, so that batches of nearly equal content share one program.
LENGTH_MULTIPLE = 8

Positions = Literal["keep", "renumber"]


class Kind(enum.IntEnum):
    """What a position of the sequence is. Padding stands at the right end of every row."""

    PADDING = 0
    TEXT = 1
    VISUAL = 2
    REGISTER = 3


@dataclass(frozen=True)
class Cut:
    """Positions of the kind `drop` end here; those that go on keep their RoPE number or are counted anew."""

    drop: Kind
    positions: Positions


@dataclass(frozen=True)
class Plan:
    stages: tuple[int, ...]  # layers of each stage
    cuts: tuple[Cut, ...]  # cuts[i] stands between stages[i] and stages[i + 1]

    def __post_init__(self) -> None:
        assert len(self.cuts) == len(self.stages) - 1, "a cut stands between two stages"

    @property
    def depth(self) -> int:
        return sum(self.stages)

    def lengths(self, kinds: np.ndarray) -> tuple[int, ...]:
        """kinds int [B, T], on the host -> the static length of each stage that serves every row."""
        lengths = [kinds.shape[1]]
        alive = kinds != Kind.PADDING
        for cut in self.cuts:
            alive &= kinds != cut.drop
            longest = int(alive.sum(axis=1).max())
            lengths.append(min(round_up(longest, LENGTH_MULTIPLE), lengths[-1]))
        return tuple(lengths)


@dataclass(frozen=True)
class Compression:
    """A method: what it adds to the sequence and the plan it runs under."""

    registers: int  # learnable positions after each image
    plan: Plan
    spec: str = ""  # its written form, set where it is parsed


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
