"""Methods that choose a plan for each row: the layers before a fork run for all rows, then each group goes on alone.

Rows of one choice form a group, which runs the programs of its plan. A group is filled up with copies of its last row
to one of four sizes per doubling, so that few programs are compiled and little is computed twice.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

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

# The caches of the steps between two forks, and which of their rows are meant: int [rows].
Held = tuple[Caches, Any]


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
        return {"module": module.under(branch.plan), "sizes": branch.plan.sizes(counts), "room": room}

    def parted(fork: Fork, flow: Flow, held: list[Held], choice: jax.Array, rows: np.ndarray) -> Iterator[Group]:
        chosen = fetch(choice)[: len(rows)]
        for number, branch in enumerate(fork.branches):
            (mine,) = np.nonzero(chosen == number)
            if not len(mine):
                continue
            kept = np.pad(mine, (0, group_size(len(mine), multiple) - len(mine)), mode="edge").astype(np.int32)
            below = [(caches, of_rows[kept]) for caches, of_rows in held]
            if isinstance(branch, Fork):
                found = between_forks(params, flow, kept, start=fork.at, fork=branch, **static(branch.ends[-1]))
                above, caches, choice_there = found
                below.append((caches, np.arange(len(kept), dtype=np.int32)))
                yield from parted(branch, above, below, choice_there, rows[mine])
            else:
                given, targets = static(branch), place(batch.targets[rows[kept]])
                found = to_top(params, flow, kept, below, targets, start=fork.at, end=end, **given)
                yield Group(rows[mine], branch.spec, given["module"], found)

    flow, caches, choice = to_fork(params, place(batch), fork=fork, **static(fork.ends[-1]))
    everyone = np.arange(len(choice), dtype=np.int32)
    yield from parted(fork, flow, [(caches, everyone)], choice, everyone[: len(batch.targets)])


def group_size(rows: int, multiple: int = 1) -> int:
    return round_up(round_up(rows, max(1, 1 << max(rows.bit_length() - 3, 0))), multiple)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    names = ("module", "sizes", "room", *static)
    return functools.partial(jax.jit, static_argnames=names, compiler_options=COMPILER_OPTIONS)


@compiled("fork")
def to_fork(
    params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], room: int | None, fork: Fork
) -> tuple[Flow, Caches, jax.Array]:
    """From the input to the first fork -> also the branch of each row, int32 [B]."""

    def run(model: VLMModule) -> tuple[Flow, Caches, jax.Array]:
        return _until(model, model.bottom(batch), sizes, room, 0, fork)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@compiled("start", "fork")
def between_forks(
    params: dict,
    flow: Flow,
    rows: jax.Array,
    *,
    module: VLMModule,
    sizes: tuple[Size, ...],
    room: int | None,
    start: int,
    fork: Fork,
) -> tuple[Flow, Caches, jax.Array]:
    """These rows of the flow, int32 [rows], from one fork to the next; the caches are those of the steps between."""

    def run(model: VLMModule) -> tuple[Flow, Caches, jax.Array]:
        return _until(model, _rows_of_flow(flow, rows), sizes, room, start, fork)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@compiled("start", "end")
def to_top(
    params: dict,
    flow: Flow,
    rows: jax.Array,
    held: list[Held],
    targets: jax.Array,
    *,
    module: VLMModule,
    sizes: tuple[Size, ...],
    room: int | None,
    start: int,
    end: End | None,
) -> Any:
    """These rows of the flow from a fork to the top. Caches are large: each row's are copied once, here."""

    def run(model: VLMModule) -> Any:
        top, caches = model.part(_rows_of_flow(flow, rows), sizes, room, (start, None))
        if end is not None:
            return end(model, top, targets)
        below = [_rows_of_caches(one, of_rows, module.cache_axes) for some, of_rows in held for one in some]
        return model.next_logits(top), [*below, *caches]

    return module.apply({"params": params}, method=run)


def _until(
    model: VLMModule, flow: Flow, sizes: tuple[Size, ...], room: int | None, start: int, fork: Fork
) -> tuple[Flow, Caches, jax.Array]:
    flow, caches = model.part(flow, sizes, room, (start, fork.at))
    return flow, caches, model.choose(flow, fork)


def _rows_of_flow(flow: Flow, rows: jax.Array) -> Flow:
    return jax.tree.map(lambda array: array[rows], replace(flow, scores=None))  # scores are of layers, not of rows


def _rows_of_caches(caches: Any, rows: jax.Array, axes: CacheAxes) -> Any:
    """`caches`: what one step keeps."""
    if not isinstance(caches, StageCache):
        return jax.tree.map(lambda array: array[rows], caches)
    keys, values = (
        tuple(jnp.take(array, rows, axis=1 + order.index("B")) for array in held)
        for held, order in zip((caches.keys, caches.values), axes, strict=True)
    )
    return replace(caches, keys=keys, values=values, positions=caches.positions[rows], new=caches.new[rows])
