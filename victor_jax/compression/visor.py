"""VISOR, vision on request (Bulat et al., arXiv 2603.23495): no visual token is dropped; most layers do not see them.

The visual tokens wait beside the stream, and text runs alone. After evenly spaced layers text reads them in a
cross-attention of its own, which does not change them. In a few of the tower's layers they join the text, so that both
are refreshed (self-attention). A layer that sees text alone caches text alone; a cross-attention keeps the visual keys
and values once.

Of L layers, `self=S` of them see both: the third one and every L/S-th from there (of fewer than three to a
stretch, the last of it). `cross=C` read after the first layer and every L/C-th from there. So the layers of a smaller
number are among those of a larger one, and a model that was trained with `sampled` serves all of the sub-networks that
`ladder` names: each step of its training runs one. With `policy` a small network chooses one for each row before the
first layer in which they differ. The paper's maximum is S = C = L/3; here the largest divisor of L up to that.

There is no public code. The paper gives the three kinds of layers, positions by a depth-wise convolution of kernel 7,
sampling, the router and its labels. Ours: where exactly layers lie; the convolution runs over each image's tokens in
reading order, on what both keys and values are made of (a point-wise part would be one with their projections); the
block has the heads of the language tower, a norm for either side and no MLP, and starts as a block that adds nothing;
the ladder; and the router's form, see `choice.py`.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.choice import Chooser, Outcome
from victor_jax.compression.plan import Branch, Counts, Fork, Kind, Layers, Method, Plan, Size, Step
from victor_jax.compression.steps import Leave, Return
from victor_jax.compression.stream import Flow, Stream
from victor_jax.errors import UserError
from victor_jax.models.config import LanguageConfig, VLMConfig
from victor_jax.models.layers import Dense, RMSNorm
from victor_jax.models.parameters import Normal, declare
from victor_jax.ops.attention import Implementation, attend_cache, attention

KERNEL = 7  # visual tokens that the position of one depends on
KEPT = 0.99  # of the largest sub-network's result, for a cheaper one to do


@dataclass(frozen=True)
class Read:
    """Text reads the visual tokens that wait; `layers` of the tower have run."""

    layers: int

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, Any]:
        stream, visual = flow.stream, flow.parked
        assert visual is not None, "a Read follows a Leave that parks"
        if not visual.kinds.shape[1]:  # a batch without images
            return flow, None
        x, kept = own.read(self.layers, stream, visual)
        return replace(flow, stream=replace(stream, x=x)), kept

    def decode(self, x: jax.Array, kept: Any, own: Any) -> jax.Array:
        return own.read_new(self.layers, x, kept)


class CrossAttention(nn.Module):
    """Text reads visual tokens, residual into the text."""

    config: LanguageConfig
    dtype: Any

    def setup(self) -> None:
        c = self.config
        self.norm_text, self.norm_visual = RMSNorm(c.norm_eps), RMSNorm(c.norm_eps)
        self.convolution = self.param("convolution", declare(Normal(0.02)), (KERNEL, c.width))
        self.q, self.k, self.v = (
            Dense(heads * c.head_dim, False, self.dtype) for heads in (c.heads, c.kv_heads, c.kv_heads)
        )
        self.o = Dense(c.width, False, self.dtype, axes=("tensor", "fsdp"), start="zeros")

    def __call__(self, stream: Stream, visual: Stream) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        """x [B, T, D] of the text, with what it read; and keys, values and which of them are real, for new tokens."""
        k, v = self.keys_values(visual)
        is_real = visual.kinds == Kind.VISUAL
        sees = is_real[:, None] & (visual.origin[:, None] < stream.origin[..., None])
        q = self._heads(self.q(self.norm_text(stream.x)))
        read = self._joined(attention(q, k, v, causal=False, mask=sees))
        return stream.x + jnp.where(sees.any(axis=2)[..., None], self.o(read), 0), (k, v, is_real)

    def new(self, x: jax.Array, kept: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        """x [B, 1, D] of a new token, which sees all of them."""
        k, v, is_real = kept
        read = attend_cache(self._heads(self.q(self.norm_text(x))), k, v, is_real, axes=("BSKH", "BSKH"))
        return x + jnp.where(is_real.any(axis=1)[:, None, None], self.o(self._joined(read)), 0)

    def keys_values(self, visual: Stream) -> tuple[jax.Array, jax.Array]:
        """[B, V, K, H]. The convolution adds to a token its neighbours in the sequence, never one of another turn."""
        x = self.norm_visual(visual.x)
        mixed, length, half = x, x.shape[1], KERNEL // 2
        # Not indexed: jax 0.10 cannot add the gradient of a slice of a parameter to a sum in place.
        weights = jnp.unstack(self.convolution.astype(self.dtype))
        for offset, weight in zip(range(-half, half + 1), weights, strict=True):
            shifted, origin, kinds = (
                jnp.pad(a, ((0, 0), (half, half), *[(0, 0)] * (a.ndim - 2)))[:, half + offset : half + offset + length]
                for a in (x, visual.origin, visual.kinds)
            )
            is_neighbour = (kinds == Kind.VISUAL) & (origin == visual.origin + offset)
            mixed = mixed + jnp.where(is_neighbour[..., None], shifted * weight[None, None], 0)
        return self._heads(self.k(mixed)), self._heads(self.v(mixed))

    def _heads(self, y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1, self.config.head_dim)

    def _joined(self, y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1)


class Blocks(nn.Module):
    """The cross-attentions, by the number of layers below each, and the router."""

    config: LanguageConfig
    dtype: Any
    reads: tuple[int, ...]
    choices: int  # of the router; 0: none

    def setup(self) -> None:
        self.cross = {str(layers): CrossAttention(self.config, self.dtype) for layers in self.reads}
        if self.choices:
            self.router = Chooser(self.choices)

    def read(self, layers: int, stream: Stream, visual: Stream) -> tuple[jax.Array, Any]:
        return self.cross[str(layers)](stream, visual)

    def read_new(self, layers: int, x: jax.Array, kept: Any) -> jax.Array:
        return self.cross[str(layers)].new(x, kept)

    def choose(self, features: jax.Array, layers: int) -> jax.Array:
        """features [B, 2 D] -> float32 [B, branches]; the first of the largest is chosen."""
        return self.router(features)


@dataclass(frozen=True)
class Own:
    reads: tuple[int, ...]
    choices: int

    def __call__(self, config: VLMConfig, dtype: Any, implementation: Implementation) -> nn.Module:
        return Blocks(config.language, dtype, self.reads, self.choices)


def visor(
    config: VLMConfig, self: int | None = None, cross: int | None = None, sampled: bool = False, policy: bool = False
) -> Method:
    depth = config.language.depth
    most = next(n for n in range(max(depth // 3, 1), 0, -1) if depth % n == 0)
    selves, crosses = most if self is None else self, most if cross is None else cross
    for name, number in (("self", selves), ("cross", crosses)):
        if number and depth % number:
            raise UserError(
                f"{name}={number} does not divide the language tower of {depth} layers: choose one of 0, "
                + ", ".join(str(n) for n in range(1, depth + 1) if depth % n == 0)
            )
    if sampled and policy:
        raise UserError("sampled and policy exclude each other: train with sampled, then choose with policy")
    choices = ladder(selves, crosses) if sampled or policy else ((selves, crosses),)
    cuts = boundaries(depth, selves, crosses)
    plans = tuple(plan(depth, s, c, cuts) for s, c in choices)
    if (sampled or policy) and len(plans) == 1:
        raise UserError(f"self={selves} and cross={crosses} have no smaller sub-network to choose: take larger ones")
    fork = None
    if policy:
        named = [Branch(f"visor:self={s},cross={c}", one) for (s, c), one in zip(choices, plans, strict=True)]
        fork = Fork(shared(plans), tuple(named))

    own = Own(reads(depth, crosses), len(plans) if policy else 0) if crosses or policy else None
    return Method(plans[-1], own=own, fork=fork, keeps=keeps, sampled=plans if sampled else ())


def ladder(selves: int, crosses: int) -> tuple[tuple[int, int], ...]:
    """(self, cross) of the sub-networks, the cheapest first, all of it last."""
    chosen = [(0, crosses // 2)] * (crosses % 2 == 0) + [(0, crosses)]
    chosen += [(selves // share, crosses) for share in (4, 2, 1) if selves % share == 0]
    return tuple(dict.fromkeys(pair for pair in chosen if any(pair)))


def joint_layers(depth: int, selves: int) -> tuple[int, ...]:
    """The layers that see text and visual tokens, by number from 0."""
    stride = depth // selves if selves else depth
    return tuple(range(min(2, stride - 1), depth, stride)) if selves else ()


def reads(depth: int, crosses: int) -> tuple[int, ...]:
    """How many layers have run at each cross-attention."""
    return tuple(range(1, depth + 1, depth // crosses)) if crosses else ()


def boundaries(depth: int, selves: int, crosses: int) -> frozenset[int]:
    """Where a stage ends in the largest sub-network, and so in all of them."""
    joint = joint_layers(depth, selves)
    changes = {n for n in range(1, depth) if (n in joint) != (n - 1 in joint)}
    return frozenset(changes | set(reads(depth, crosses)))


def plan(depth: int, selves: int, crosses: int, cuts: frozenset[int]) -> Plan:
    joint, crossed = joint_layers(depth, selves), reads(depth, crosses)
    steps: list[Layers | Step] = []
    together = True  # text and visual tokens, as a sequence begins
    first = 0

    def run(until: int) -> None:
        nonlocal first
        if until > first:
            steps.append(Layers(until - first))
            first = until

    def put(joined: bool) -> None:
        nonlocal together
        if joined != together:
            steps.append(Return(Kind.VISUAL) if joined else Leave(Kind.VISUAL, park=True))
            together = joined

    for layer in range(depth + 1):
        if layer in cuts or layer == depth:
            run(layer)
        if layer in crossed:
            put(False)
            steps.append(Read(layer))
        if layer < depth and (layer in joint) != together:
            run(layer)
            put(layer in joint)
    return Plan(tuple(steps))


def shared(plans: tuple[Plan, ...]) -> int:
    """How many of their first steps are the same in all of them."""
    together = zip(*(one.steps for one in plans), strict=False)
    return next(number for number, steps in enumerate(together) if len(set(steps)) > 1)


def keeps(found: Outcome, largest: Outcome) -> np.ndarray:
    """Whether a sub-network gives the answer's words at least 0.99 of the probability, in the geometric mean."""
    return (found.log_probability - largest.log_probability) / largest.length >= np.log(KEPT)
