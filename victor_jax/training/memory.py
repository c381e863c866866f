"""Whether a run can fit its devices at all, decided from shapes: before data, weights and the first compile.

Only what is certain counts, so that nothing is refused that could run: when the optimizer begins, its moments, the
parameters and all gradients lie there; when the backward pass begins, the inputs of all language layers lie there in
place of the gradients. What a compiler needs beyond that, only a compiler knows: `victor-jax plan-pod` asks one.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from victor_jax.data.shapes import Layout
from victor_jax.errors import UserError
from victor_jax.training.setup import Run, sizes_of

GIB = 2**30
STATE = ("trained parameters", "optimizer", "gradients", "frozen parameters")
ACTIVATIONS = "inputs of the layers"
GPU_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # jax takes 0.75 of a GPU where it is not set


@dataclass(frozen=True)
class Room:
    """What there is for arrays to lie in."""

    bytes: int
    is_shared: bool  # by all devices of this process: the machine's own memory; else each device has as much


def room(devices: Sequence[jax.Device]) -> Room | None:
    """Of this process's devices, the smallest; None where nobody knows."""
    if devices[0].platform == "cpu":
        size = machine_memory()
        return Room(size, is_shared=True) if size else None
    stats = [device.memory_stats() or {} for device in devices]
    sizes = [one["bytes_limit"] for one in stats if "bytes_limit" in one]
    return Room(min(sizes), is_shared=False) if sizes else None


def machine_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory and swap that this process may fill before the kernel kills it; None where it is no Linux."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        limits = [sizes["MemTotal"], *_cgroup_limits(proc, cgroups)]
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return min(limits) + sizes.get("SwapTotal", 0)


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Those of containers and of job schedulers, in the spelling of versions 1 and 2; a group obeys all above it."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        root, name = (cgroups, "memory.max") if not kinds else (cgroups / "memory", "memory.limit_in_bytes")
        if kinds and "memory" not in kinds.split(","):
            continue
        group = root / path.strip("/")
        for folder in (group, *(above for above in group.parents if above.is_relative_to(root))):
            file = folder / name
            if file.exists() and (limit := file.read_text().strip()).isdigit():
                yield int(limit)


def held(run: Run, is_shared: bool, layouts: Sequence[Layout] = ()) -> dict[str, int]:
    """Bytes at the least, by kind, of what lies on one device at one time; shared: on all devices of this process."""
    trained = _numbers(run.train, is_shared)
    # One part's gradients may stay in the type of the arithmetic up to the update; sums over parts are float32.
    narrow = min(jnp.dtype(run.settings.param_dtype).itemsize, jnp.dtype(run.settings.dtype).itemsize)
    gradients = trained * (narrow if run.settings.micro_batches == 1 else 4)
    activations = max((_layer_inputs(run, layout, is_shared) for layout in layouts), default=0)
    return {
        "trained parameters": _bytes(run.train, is_shared),
        "optimizer": _bytes(run.state.optimizer, is_shared),
        "frozen parameters": _bytes(run.frozen, is_shared),
    } | ({"gradients": gradients} if gradients >= activations else {ACTIVATIONS: activations})


def _layer_inputs(run: Run, layout: Layout, is_shared: bool) -> int:
    """What every layer leaves for the backward pass, however much of it is computed again."""
    settings, module = run.settings, run.module
    through_text = "language" in settings.trainable or settings.lora.rank > 0  # else text-only rows teach nothing
    largest = max(
        sum(
            layers * length
            for layers, length in zip(module.method.plan.stages, module.method.plan.stage_lengths(sizes), strict=True)
        )
        if part.images or through_text
        else 0
        for part, sizes in zip(layout.parts, sizes_of(run, layout.parts), strict=True)
    )
    rows = settings.batch_size // settings.micro_batches
    whole = rows * largest * module.config.language.width * jnp.dtype(settings.dtype).itemsize
    return whole * (len(run.mesh.local_devices) if is_shared else 1) // run.mesh.size


def _numbers(tree: Any, is_shared: bool) -> int:
    return sum(_held_numbers(leaf, is_shared) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any, is_shared: bool) -> int:
    return sum(_held_numbers(leaf, is_shared) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _held_numbers(leaf: jax.ShapeDtypeStruct, is_shared: bool) -> int:
    sharding: Any = leaf.sharding
    # Copies on devices that share one memory may be one: distinct shards count.
    shards = len({str(at) for at in sharding.addressable_devices_indices_map(leaf.shape).values()}) if is_shared else 1
    return shards * math.prod(sharding.shard_shape(leaf.shape))


# --- in words -------------------------------------------------------------------------------------------------------


def check(run: Run, layouts: Sequence[Layout] = (), limit: Room | None = None) -> None:
    """One error where the run cannot fit, whatever the compiler does; without layouts, by its state alone."""
    limit = limit or room(run.mesh.local_devices)
    if limit is None:
        return
    kinds = held(run, limit.is_shared, layouts)
    total = sum(kinds.values())
    if total > limit.bytes:
        raise UserError(
            f"too little memory: {'this machine' if limit.is_shared else 'each device'} would hold at least "
            f"{gib(total)} GiB at once ({described(kinds)}), and has {gib(limit.bytes)}; "
            f"{advice(run, kinds, limit, ACTIVATIONS in kinds)}"
        )


@contextmanager
def explained(run: Run, layout: Layout) -> Iterator[None]:
    """The first step of a layout: where the compiler or the device runs out of memory, in one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        limit = room(run.mesh.local_devices)
        kinds = held(run, limit is not None and limit.is_shared, [layout])
        longest = layout.parts[-1]
        raise UserError(
            f"too little memory for the step on rows of {longest.text} text positions and "
            f"{longest.images} image{'s' * (longest.images != 1)}: "
            f"{described(kinds)} lie there at the least{f', of {gib(limit.bytes)} GiB' if limit else ''}, and what "
            f"the step computes on top did not fit; {advice(run, kinds, limit, of_step=True)}"
        ) from None


def described(kinds: Mapping[str, int]) -> str:
    largest_first = sorted(kinds.items(), key=lambda kind: -kind[1])
    return ", ".join(f"{name} {gib(size)} GiB" for name, size in largest_first if size >= GIB / 100)


def advice(run: Run, kinds: Mapping[str, int], limit: Room | None, of_step: bool) -> str:
    """What to change, the cheapest first; what makes a step smaller only where it is a matter of steps."""
    settings, mesh = run.settings, run.mesh.shape
    choices = []
    if of_step:
        rows, parts = settings.batch_size // settings.micro_batches, mesh["data"] * mesh["fsdp"]
        if settings.remat != "full":
            choices.append("config.remat=full")
        if rows % (2 * parts) == 0:
            choices.append(f"config.micro_batches={2 * settings.micro_batches}")
        choices.append("a smaller config.batch_size or config.data.max_length")
    if run.mesh.devices.flat[0].platform == "gpu" and GPU_FRACTION not in os.environ:
        choices.append(f"{GPU_FRACTION}=0.95 in the environment (jax takes 0.75 of a GPU by itself)")
    if settings.dtype == "float32":
        choices.append(f"config.dtype=bfloat16 ({gib(kinds['frozen parameters'] / 2)} GiB less)")
    if settings.param_dtype == "float32" and "language" in settings.trainable:
        choices.append(f"config.param_dtype=bfloat16 ({gib(kinds['trained parameters'] / 2)} GiB less)")
    if "language" in settings.trainable:
        choices.append("adapters (configs/finetune_lora.py)")
    choices.append(_more_room(run, kinds, limit))
    return f"try {', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else f"try {choices[0]}"


def _more_room(run: Run, kinds: Mapping[str, int], limit: Room | None) -> str:
    if limit is not None and limit.is_shared:
        return "a machine with more memory (for a smoke test on any machine: --config=FILE:runlocal)"
    if run.mesh.shape["data"] > 1:
        return "config.mesh.data=1 with a larger config.mesh.fsdp, which cuts parameters where data copies them"
    state = sum(kinds.get(name, 0) for name in STATE) * run.mesh.size
    wanted = 0 if limit is None else math.ceil(state / limit.bytes)
    return "more devices over config.mesh.fsdp" + (f" (about {wanted})" if wanted > run.mesh.size else "")


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
