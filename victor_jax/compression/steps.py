"""The steps that methods share: positions leave the stream, for good or to wait beside it, and come back."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Counts, Kind, Size
from victor_jax.compression.stream import Flow, Stream, count_anew, merge, select

Positions = Literal["keep", "renumber"]


class OfPrompt:
    """A step that concerns a full pass alone: new tokens pass it by."""

    def decode(self, x: jax.Array, kept: Any, own: Any) -> jax.Array:
        return x


@dataclass(frozen=True)
class Leave(OfPrompt):
    """Positions of one kind leave: all, or all but the best of each row by the score of the layer before: `keep` of
    them, or `percent` of those in the stream, rounded down.

    With `park` they wait beside the stream, else they are gone. The others keep their RoPE positions or are counted
    anew. The last position of a prompt is always among the best, since the answer is read off it.
    """

    kind: Kind
    keep: int = 0
    park: bool = False
    positions: Positions = "keep"
    percent: int = 0

    def __post_init__(self) -> None:
        assert not self.park or self.positions == "keep", "parked positions return under their own numbers"
        assert not (self.keep and self.percent), "either a number of positions stays or a share of them"

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        stream, parked = stream.copy(), parked.copy()
        kept = np.minimum(stream[:, self.kind], self.most(stream[:, self.kind]))
        if self.park:
            parked[:, self.kind] += stream[:, self.kind] - kept
        stream[:, self.kind] = kept
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream, parked = flow.stream, flow.parked
        leaves = stream.kinds == self.kind
        if self.keep or self.percent:
            leaves &= ~self.best(flow, leaves)
        if self.park:
            parked = select(stream, leaves, size.parked) if parked is None else _add(parked, stream, leaves, size)
        return replace(without(flow, leaves, size.stream, self.positions), parked=parked), None

    def most(self, present: Any) -> Any:
        """int [B]: how many of those present in each row stay at most."""
        return present * self.percent // 100 if self.percent else self.keep

    def best(self, flow: Flow, candidates: jax.Array) -> jax.Array:
        """bool [B, T]: the candidates of each row with the highest scores; of equal ones the first."""
        assert flow.scores is not None, "a Leave that keeps the best follows Layers with a score"
        is_end = flow.stream.origin == flow.prompt_end[:, None]
        scores = jnp.where(is_end, jnp.inf, flow.scores[-1])
        order = jnp.argsort(jnp.where(candidates, -scores, jnp.inf), axis=1, stable=True)
        rank = jnp.argsort(order, axis=1)
        return candidates & (rank < jnp.reshape(self.most(candidates.sum(axis=1)), (-1, 1)))


@dataclass(frozen=True)
class Return(OfPrompt):
    """All parked positions of one kind come back into the stream, in sequence order."""

    kind: Kind

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        stream, parked = stream.copy(), parked.copy()
        stream[:, self.kind] += parked[:, self.kind]
        parked[:, self.kind] = 0
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        parked = flow.parked
        assert parked is not None, "a Return follows a Leave that parks"
        comes = parked.kinds == self.kind
        returning = replace(parked, kinds=jnp.where(comes, parked.kinds, Kind.PADDING))
        rest = select(parked, (parked.kinds != Kind.PADDING) & ~comes, size.parked)
        return replace(flow, stream=merge(flow.stream, returning, size.stream), parked=rest, scores=None), None


def without(flow: Flow, leaves: jax.Array, length: int, positions: Positions) -> Flow:
    """When these positions of the stream, bool [B, T], have left; the others keep their RoPE positions or are counted
    anew."""
    is_real = flow.stream.kinds != Kind.PADDING
    flow = replace(flow, stream=select(flow.stream, is_real & ~leaves, length), scores=None)
    if positions == "keep":
        return flow
    return replace(flow, stream=count_anew(flow.stream), new=(is_real & ~leaves).sum(axis=1))


def _add(parked: Stream, stream: Stream, leaves: jax.Array, size: Size) -> Stream:
    leaving = replace(stream, kinds=jnp.where(leaves, stream.kinds, Kind.PADDING))
    return merge(parked, leaving, size.parked)
