"""Methods that choose a plan for each row: the layers before a fork run for all rows, then each group goes on alone.

Rows of one choice form a group, which runs the programs of its plan. A group is filled up with copies of its last row
to one of four sizes per doubling, so that few programs are compiled and little is computed twice.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Branch, Counts, Fork, Size, round_up
from victor_jax.compression.stream import Flow
from victor_jax.inference.platform import COMPILER_OPTIONS
from victor_jax.inference.programs import End
from victor_jax.models.language import Caches, StageCache
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.attention import CacheAxes
from victor_jax.sharding.mesh import fetch


@flax.struct.dataclass
class Prefix:
    """What the steps before a fork made of some rows."""

    flow: Flow
    caches: Caches  # of these steps


@dataclass(frozen=True)
class Group:
    """Rows that chose one plan, and what its end gave for them, after them fillers."""

    rows: np.ndarray  # int [rows of it]: which of the batch
    compression: str  # that does the same to all rows
    module: VLMModule  # whose plan it is
    found: Any


def groups(
    params: Any,
    batch: Batch,
    counts: Counts,
    module: VLMModule,
    end: End | None,  # None: the logits of the first new token, and the caches
    room: int | None = None,  # of the caches, for new tokens
    place: Callable[[Any], Any] = lambda rows: rows,  # onto devices
    multiple: int = 1,  # which the number of rows of a group must divide by
) -> Iterator[Group]:
    """One after the other, in the order of the branches. Each is dispatched and not awaited."""
    fork = module.method.fork
    assert fork is not None, f"{module.method.spec} chooses nothing"

    def static(branch: Branch) -> dict[str, Any]:
        method = replace(module.method, plan=branch.plan, fork=None)
        return {"module": module.clone(method=method), "sizes": branch.plan.sizes(counts), "room": room}

    def parted(fork: Fork, prefix: Prefix, choice: jax.Array, rows: np.ndarray) -> Iterator[Group]:
        chosen = fetch(choice)[: len(rows)]
        for number, branch in enumerate(fork.branches):
            (mine,) = np.nonzero(chosen == number)
            if not len(mine):
                continue
            kept = np.pad(mine, (0, group_size(len(mine), multiple) - len(mine)), mode="edge").astype(np.int32)
            if isinstance(branch, Fork):
                above, choice_there = between_forks(
                    params, prefix, kept, start=fork.at, fork=branch, **static(branch.ends[-1])
                )
                yield from parted(branch, above, choice_there, rows[mine])
            else:
                given, whose = static(branch), rows[mine]
                targets = place(batch.targets[rows[kept]])
                found = to_top(params, prefix, kept, targets, start=fork.at, end=end, **given)
                yield Group(whose, branch.spec, given["module"], found)

    prefix, choice = to_fork(params, place(batch), fork=fork, **static(fork.ends[-1]))
    yield from parted(fork, prefix, choice, np.arange(len(batch.targets)))


def group_size(rows: int, multiple: int = 1) -> int:
    return round_up(round_up(rows, max(1, 1 << max(rows.bit_length() - 3, 0))), multiple)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    names = ("module", "sizes", "room", *static)
    return functools.partial(jax.jit, static_argnames=names, compiler_options=COMPILER_OPTIONS)


@compiled("fork")
def to_fork(
    params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], room: int | None, fork: Fork
) -> tuple[Prefix, jax.Array]:
    """From the input to the first fork, and the branch of each row, int32 [B]."""

    def run(model: VLMModule) -> tuple[Prefix, jax.Array]:
        return _until(model, Prefix(model.bottom(batch), []), sizes, room, 0, fork)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@compiled("start", "fork")
def between_forks(
    params: dict,
    prefix: Prefix,
    rows: jax.Array,
    *,
    module: VLMModule,
    sizes: tuple[Size, ...],
    room: int | None,
    start: int,
    fork: Fork,
) -> tuple[Prefix, jax.Array]:
    """These rows, int32 [rows], from one fork to the next."""

    def run(model: VLMModule) -> tuple[Prefix, jax.Array]:
        return _until(model, _select(prefix, rows, module.cache_axes), sizes, room, start, fork)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@compiled("start", "end")
def to_top(
    params: dict,
    prefix: Prefix,
    rows: jax.Array,
    targets: jax.Array,
    *,
    module: VLMModule,
    sizes: tuple[Size, ...],
    room: int | None,
    start: int,
    end: End | None,
) -> Any:
    """These rows from a fork to the top."""

    def run(model: VLMModule) -> Any:
        mine = _select(prefix, rows, module.cache_axes)
        flow, caches = model.part(mine.flow, sizes, room, (start, None))
        return (model.next_logits(flow), [*mine.caches, *caches]) if end is None else end(model, flow, targets)

    return module.apply({"params": params}, method=run)


def _until(
    model: VLMModule, prefix: Prefix, sizes: tuple[Size, ...], room: int | None, start: int, fork: Fork
) -> tuple[Prefix, jax.Array]:
    flow, caches = model.part(prefix.flow, sizes, room, (start, fork.at))
    return Prefix(flow, [*prefix.caches, *caches]), model.choose(flow, fork)


def _select(prefix: Prefix, rows: jax.Array, axes: CacheAxes) -> Prefix:
    def of_caches(caches: Any) -> Any:
        if not isinstance(caches, StageCache):
            return jax.tree.map(lambda array: array[rows], caches)
        keys, values = (
            tuple(jnp.take(array, rows, axis=1 + order.index("B")) for array in held)
            for held, order in zip((caches.keys, caches.values), axes, strict=True)
        )
        return replace(caches, keys=keys, values=values, positions=caches.positions[rows], new=caches.new[rows])

    flow = replace(prefix.flow, scores=None)  # of the layers, not of the rows
    return Prefix(jax.tree.map(lambda array: array[rows], flow), [of_caches(caches) for caches in prefix.caches])
