"""The plan: which layers run on which positions. It is known before anything is compiled.

    full        32 layers
    victor      3 layers, the visual tokens leave (registers stay), 29 layers
    vtw         16 layers, the visual tokens leave, 16 layers
    fastv       2 layers, the visual tokens leave but for the 144 that the prompt looks at most, 30 layers

A plan says nothing about weights, batches or methods. Lengths follow from counts per kind, and only they are static:
which positions leave is decided inside the program.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NewType, Protocol

import numpy as np

if TYPE_CHECKING:
    import flax.linen as nn
    import jax

    from victor_jax.compression.choice import Outcome
    from victor_jax.compression.stream import Flow, Where
    from victor_jax.models.config import VLMConfig
    from victor_jax.ops.attention import Implementation

# Lengths are rounded up to this, so that batches of nearly equal content share one program.
LENGTH_MULTIPLE = 8
REGISTER_STD = 0.02  # the paper does not say; this is the language tower's own embedding scale

Positive = NewType("Positive", int)  # a field of a written compression that may not be 0
Percent = NewType("Percent", int)  # one from 1 to 100
Token = NewType("Token", int)  # the id of a token


class Kind(enum.IntEnum):
    """What a position of the sequence is. Padding is at the right end of every row."""

    PADDING = 0
    TEXT = 1
    VISUAL = 2
    REGISTER = 3


Counts = np.ndarray  # int [B, kinds]: positions of each kind in each row; padding is not counted


class Size(NamedTuple):
    """Static lengths after one step of a plan, for all rows of a batch."""

    stream: int
    parked: int  # positions that wait beside the stream


class Step(Protocol):
    """Changes which positions are in the stream. `steps.py` has the shared ones; a method may bring its own."""

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        """The counts in the stream and beside it after this step."""
        ...

    def apply(self, flow: "Flow", size: Size, own: "nn.Module | None") -> tuple["Flow", Any]:
        """`own` is the module whose parameters the method's steps use. Also returned: what `decode` will need, or None.

        A batch without images parks nothing: a parked length may be 0.
        """
        ...

    def decode(self, x: "jax.Array", kept: Any, own: "nn.Module | None") -> "jax.Array":
        """x [B, 1, D] of a new token; asked only where `apply` kept something for it."""
        ...


# (q [B, T, N, H], k [B, T, K, H], where) -> float32 [B, …]: computed from one layer's rotated queries and keys,
# beside its attention, so that every layer keeps its kernel.
Score = Callable[["jax.Array", "jax.Array", "Where"], "jax.Array"]


@dataclass(frozen=True)
class Layers:
    """`count` layers run on the stream as it is; each of them also computes `score`, for the step that follows.

    With `ahead` the score is that of the layer after them instead, of the queries and keys that it would have. With
    `barred` text does not attend to visual tokens in these layers, which then run without a fast kernel.
    """

    count: int
    score: Score | None = None
    ahead: bool = False
    barred: bool = False


@dataclass(frozen=True)
class Plan:
    steps: tuple[Layers | Step, ...]

    @property
    def stages(self) -> tuple[int, ...]:
        """Layers of each run of layers. A stage has one length and caches of its own."""
        return tuple(step.count for step in self.steps if isinstance(step, Layers))

    @property
    def depth(self) -> int:
        return sum(self.stages)

    def sizes(self, counts: Counts) -> tuple[Size, ...]:
        """Of every step: the lengths after it that serve every row."""
        stream, parked = counts, np.zeros_like(counts)
        sizes = []
        for step in self.steps:
            if not isinstance(step, Layers):
                stream, parked = step.after(stream, parked)
            sizes.append(Size(length_of(stream), length_of(parked)))
        return tuple(sizes)

    def stage_lengths(self, sizes: tuple[Size, ...]) -> tuple[int, ...]:
        """The length of each stage."""
        return tuple(size.stream for step, size in zip(self.steps, sizes, strict=True) if isinstance(step, Layers))


@dataclass(frozen=True)
class Branch:
    """One of the plans that rows may follow, and the written compression that says the same of all rows."""

    spec: str
    plan: Plan


@dataclass(frozen=True)
class Fork:
    """Here rows part: the method's module chooses for each of them a branch, by `choose(flow, layers)`.

    All plans behind it share their first `at` steps. All branches of a method have the same stages, so one set of
    parameters serves them; the cheapest comes first, the method's own plan last.
    """

    at: int
    branches: "tuple[Fork | Branch, ...]"

    @property
    def ends(self) -> tuple[Branch, ...]:
        """Every plan behind it, in order."""
        return tuple(
            end for branch in self.branches for end in (branch.ends if isinstance(branch, Fork) else (branch,))
        )

    @property
    def forks(self) -> "tuple[Fork, ...]":
        """Itself and those behind it, from the bottom up."""
        return self, *(fork for branch in self.branches if isinstance(branch, Fork) for fork in branch.forks)

    @property
    def layers(self) -> int:
        """How many have run where rows part."""
        return Plan(self.ends[0].plan.steps[: self.at]).depth


@dataclass(frozen=True)
class Compressor:
    """Works before the language tower: what the vision tower made of an image in, fewer visual tokens out."""

    after_projector: ClassVar[bool] = False  # whether its features are those that the projector gives, [I, P, D]

    def tokens(self, config: "VLMConfig") -> int:
        """Visual tokens per image that come out, at most."""
        raise NotImplementedError

    def module(self, config: "VLMConfig", dtype: Any) -> "nn.Module":
        """Called with Seen -> [I, R, E], or that and a bool [I, R]: which of them are used, always the last. Its
        parameters are the method's own."""
        raise NotImplementedError

    def levels(self, config: "VLMConfig") -> tuple[int, ...]:
        """Levels of the vision tower that it reads beside the features; level n is what n layers give."""
        return ()

    def looked(self, config: "VLMConfig") -> range:
        """The vision layers that compute `look`, by number from 0; they may lie above the features."""
        return range(0)

    def look(self, q: "jax.Array", k: "jax.Array") -> Any:
        """q and k [I, 1 + P, N, H] of such a layer, the class token first -> arrays [I, …], beside its attention."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """One way to compress: what it adds to the sequence, what it does to features, the plan it runs under."""

    plan: Plan
    registers: int = 0  # learnable positions after each image, at most
    compressor: Compressor | None = None
    # (config, dtype, implementation of attention) -> the module whose parameters its steps use
    own: "Callable[[VLMConfig, Any, Implementation], nn.Module] | None" = None
    # In training each row has one of these numbers of registers (of visual tokens per image where there are none): the
    # first ones. So any smaller number can be asked for later.
    draws: tuple[int, ...] = ()
    register_std: float = REGISTER_STD  # of their start
    word: int | None = None  # a token whose embedding they start as instead
    whole_images: bool = False  # its steps count on every token that the vision tower gives of an image
    fork: Fork | None = None  # where the plan is chosen for each row, when the model answers
    # (outcome of one of its plans, that of this plan) -> bool [B]: for which rows it does as well, see choice.py
    keeps: "Callable[[Outcome, Outcome], np.ndarray] | None" = None
    sampled: tuple[Plan, ...] = ()  # each training step runs one of these instead, the same for all rows
    spec: str = ""  # its written form, set where it is parsed

    def tokens_per_image(self, config: "VLMConfig") -> int:
        return self.compressor.tokens(config) if self.compressor else config.features_per_image


def length_of(counts: Counts) -> int:
    """The static length that holds every row."""
    return round_up(int(counts.sum(axis=1).max()), LENGTH_MULTIPLE)


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
