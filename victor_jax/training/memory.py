"""Whether a run can fit its devices, decided from shapes: before data, weights and the first compile.

Only a lower bound counts, so that nothing is refused that could run. When the optimizer begins, its moments, the
parameters and all gradients are in memory; when the backward pass begins, the inputs of all language layers instead of
the gradients. What a step needs beyond that, only its compiler knows: `victor-jax plan-pod` asks it.
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
ACTIVATIONS = "inputs of the layers"
GPU_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # jax takes 0.75 of a GPU where it is not set


@dataclass(frozen=True)
class Capacity:
    bytes: int
    is_shared: bool  # by all devices of this process: the machine's own memory; else each device has as much


def capacity(devices: Sequence[jax.Device]) -> Capacity | None:
    """Of this process's devices, the smallest; None where it is not known."""
    if devices[0].platform == "cpu":
        size = machine_memory()
        return Capacity(size, is_shared=True) if size else None
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return Capacity(min(limits), is_shared=False) if min(limits) else None


def machine_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory and swap that this process may fill before the kernel kills it; None where this is not Linux."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return min([sizes["MemTotal"], *_cgroup_limits(proc, cgroups)]) + sizes.get("SwapTotal", 0)
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _cgroup_limits(proc: Path, cgroups: Path) -> list[int]:
    """Those of containers and job schedulers, in the files of versions 1 and 2; a group obeys all above it."""
    limits: list[int] = []
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, name = (cgroups / "memory", "memory.limit_in_bytes") if kinds else (cgroups, "memory.max")
        group = root / path.strip("/")
        files = [folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)]
        found = [file.read_text().strip() for file in files if file.exists()]
        limits += [int(limit) for limit in found if limit.isdigit()]  # "max" is none
    return limits


def held(run: Run, is_shared: bool, layouts: Sequence[Layout] = ()) -> dict[str, int]:
    """Lower bound on peak bytes, by kind, per device; if shared, of all devices of this process together."""
    # One part's gradients may keep the type of the arithmetic up to the update; sums over parts are float32.
    narrow = min(jnp.dtype(run.settings.param_dtype).itemsize, jnp.dtype(run.settings.dtype).itemsize)
    gradients = bytes_of(run.train, is_shared, narrow if run.settings.micro_batches == 1 else 4)
    activations = max((_layer_inputs(run, layout, is_shared) for layout in layouts), default=0)
    peak = {"gradients": gradients} if gradients >= activations else {ACTIVATIONS: activations}
    return state_bytes(run, is_shared) | peak


def state_bytes(run: Run, is_shared: bool) -> dict[str, int]:
    """What stays in memory from step to step, by kind."""
    kinds = {"trained parameters": run.train, "optimizer": run.state.optimizer, "frozen parameters": run.frozen}
    return {kind: bytes_of(tree, is_shared) for kind, tree in kinds.items()}


def bytes_of(tree: Any, is_shared: bool = False, itemsize: int | None = None) -> int:
    """Of abstract arrays with shardings."""
    return sum(_numbers(leaf, is_shared) * (itemsize or leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))


def _numbers(leaf: Any, is_shared: bool) -> int:
    """Elements on one device. Copies on devices that share a memory may be one: there, distinct shards count."""
    places = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return (len(set(map(str, places))) if is_shared else 1) * math.prod(leaf.sharding.shard_shape(leaf.shape))


def _layer_inputs(run: Run, layout: Layout, is_shared: bool) -> int:
    """What every layer leaves for the backward pass, even where all else is recomputed."""
    settings, module = run.settings, run.module
    through_text = "language" in settings.trainable or settings.lora.rank > 0  # else text-only rows teach nothing
    plan = module.method.plan
    positions = [
        sum(layers * length for layers, length in zip(plan.stages, plan.stage_lengths(sizes), strict=True))
        for part, sizes in zip(layout.parts, sizes_of(run, layout.parts), strict=True)
        if part.images or through_text
    ]
    rows = settings.batch_size // settings.micro_batches
    whole = rows * max(positions, default=0) * module.config.language.width * jnp.dtype(settings.dtype).itemsize
    return whole * (len(run.mesh.local_devices) if is_shared else 1) // run.mesh.size


# --- in words -------------------------------------------------------------------------------------------------------


def check(run: Run, layouts: Sequence[Layout] = (), limit: Capacity | None = None) -> None:
    """One error where the run cannot fit, whatever the compiler does; without layouts, by its state alone."""
    limit = limit or capacity(run.mesh.local_devices)
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
    """The first step of a layout: where the compiler or the device runs out of memory, one error says so."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        limit = capacity(run.mesh.local_devices)
        kinds, longest = held(run, limit is not None and limit.is_shared, [layout]), layout.parts[-1]
        raise UserError(
            f"too little memory for the step on rows of {longest.text} text positions and "
            f"{longest.images} image{'s' * (longest.images != 1)}: it needs more than {described(kinds)}"
            f"{f' of the {gib(limit.bytes)} GiB' if limit else ''}; {advice(run, kinds, limit, of_step=True)}"
        ) from None


def described(kinds: Mapping[str, int]) -> str:
    largest_first = sorted(kinds.items(), key=lambda kind: -kind[1])
    return ", ".join(f"{name} {gib(size)} GiB" for name, size in largest_first if size >= GIB / 100)


def advice(run: Run, kinds: Mapping[str, int], limit: Capacity | None, of_step: bool) -> str:
    """What to change, the cheapest first; `of_step`: the step itself is too large, not only the state between steps."""
    settings, mesh = run.settings, run.mesh.shape
    platform, wide = run.mesh.devices.flat[0].platform, "language" in settings.trainable
    rows, parts = settings.batch_size // settings.micro_batches, mesh["data"] * mesh["fsdp"]
    choices = {
        "config.remat=full": of_step and settings.remat != "full",
        f"config.micro_batches={2 * settings.micro_batches}": of_step and rows % (2 * parts) == 0,
        "config.attention=splash (no scores in memory)": of_step and platform == "tpu" and settings.attention == "xla",
        "a smaller config.batch_size or config.data.max_length": of_step,
        f"{GPU_FRACTION}=0.95 in the environment (jax takes 0.75 of a GPU by itself)": platform == "gpu"
        and GPU_FRACTION not in os.environ,
        f"config.dtype=bfloat16 ({gib(kinds['frozen parameters'] / 2)} GiB less)": settings.dtype == "float32",
        f"config.param_dtype=bfloat16 ({gib(kinds['trained parameters'] / 2)} GiB less)": wide
        and settings.param_dtype == "float32",
        "adapters (configs/finetune_lora.py)": wide,
    }
    *first, last = [choice for choice, helps in choices.items() if helps] + [_more_memory(run, kinds, limit)]
    return f"try {', '.join(first)} or {last}" if first else f"try {last}"


def _more_memory(run: Run, kinds: Mapping[str, int], limit: Capacity | None) -> str:
    if limit is not None and limit.is_shared:
        return "a machine with more memory (for a smoke test on any machine: --config=FILE:runlocal)"
    if run.mesh.shape["data"] > 1:
        return "config.mesh.data=1 with a larger config.mesh.fsdp, which cuts parameters where data copies them"
    state = sum(size for kind, size in kinds.items() if kind != ACTIVATIONS) * run.mesh.size
    wanted = 0 if limit is None else math.ceil(state / limit.bytes)
    return "more devices over config.mesh.fsdp" + (f" (about {wanted})" if wanted > run.mesh.size else "")


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
