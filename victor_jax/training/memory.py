"""Whether a run can fit its devices, decided from shapes before data and weights are read.

Only a lower bound counts, so that nothing is refused that could run: when the optimizer begins, the parameters, its
moments and all gradients are in memory. What a step needs beyond that, only its compiler knows: where it runs out,
`explained` says so, and `victor-jax plan-pod` asks it beforehand.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.sharding.mesh import device_memory
from victor_jax.training.setup import Run

GIB = 2**30
GPU_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # jax takes 0.75 of a GPU where it is not set
CONTAINER = ("memory.max", "memory/memory.limit_in_bytes")  # its limit under /sys/fs/cgroup, in versions 2 and 1


def check(run: Run, available: int | None = None) -> None:
    """One error where the run cannot fit, whatever the compiler does. `available`: bytes of a device."""
    available, kinds = available or capacity(run.mesh.local_devices), held(run)
    if available and (total := sum(kinds.values())) > available:
        raise UserError(
            f"too little memory: each device would hold at least {gib(total)} GiB at once ({described(kinds)}), and "
            f"has {gib(available)}; {advice(run, of_step=False)}"
        )


@contextmanager
def explained(run: Run, shapes: Sequence[Shape]) -> Iterator[None]:
    """A step on parts of these shapes: where the compiler or the device runs out of memory, one error says so."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        longest = max(shapes, key=lambda shape: shape.text + shape.visual)
        raise UserError(
            f"too little memory for the step on rows of {longest.text} text positions and {longest.images} image"
            f"{'s' * (longest.images != 1)}: it needs more than {described(held(run))}; {advice(run, of_step=True)}"
        ) from None


def capacity(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of the smallest of this process's devices, None where they are not known. CPUs share the machine's."""
    if devices[0].platform == "cpu":
        size = machine_memory()
        return size and size // len(devices)
    return device_memory(devices)


def machine_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory and swap of the machine or the container; None where this is not Linux."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        limits = [(cgroups / name).read_text().strip() for name in CONTAINER if (cgroups / name).exists()]
        smallest = min([sizes["MemTotal"], *(int(limit) for limit in limits if limit.isdigit())])  # "max" is none
        return smallest + sizes.get("SwapTotal", 0)
    except (OSError, KeyError, ValueError, IndexError):
        return None


def held(run: Run) -> dict[str, int]:
    """Lower bound on the peak bytes of a device, by kind. Gradients are summed in float32."""
    return state_bytes(run) | {"gradients": bytes_of(run.train, itemsize=4)}


def state_bytes(run: Run) -> dict[str, int]:
    """What stays in the memory of a device from step to step, by kind."""
    kinds = {"trained parameters": run.train, "optimizer": run.state.optimizer, "frozen parameters": run.frozen}
    return {kind: bytes_of(tree) for kind, tree in kinds.items()}


def bytes_of(tree: Any, itemsize: int | None = None) -> int:
    """Of one device's shards of abstract arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * (itemsize or leaf.dtype.itemsize) for leaf in leaves)


# --- in words -------------------------------------------------------------------------------------------------------


def described(kinds: Mapping[str, int]) -> str:
    largest_first = sorted(kinds.items(), key=lambda kind: -kind[1])
    return ", ".join(f"{name} {gib(size)} GiB" for name, size in largest_first if size >= GIB / 100)


def advice(run: Run, of_step: bool) -> str:
    """What to change, the cheapest first; `of_step`: the step itself is too large, not only the state between steps."""
    settings, mesh = run.settings, run.mesh.shape
    platform, wide = run.mesh.devices.flat[0].platform, "language" in settings.trainable
    devices = mesh["data"] * mesh["fsdp"]
    choices = {
        "config.remat=full": of_step and settings.remat != "full",
        f"config.micro_batches={2 * run.parts} (for activations)": of_step and run.part_rows % (2 * devices) == 0,
        "config.attention=splash (no scores in memory)": of_step and platform == "tpu" and settings.attention == "xla",
        "a smaller config.batch_size or config.data.max_length": of_step,
        f"{GPU_FRACTION}=0.95 in the environment (jax takes 0.75 of a GPU by itself)": platform == "gpu"
        and GPU_FRACTION not in os.environ,
        "config.dtype=bfloat16": settings.dtype == "float32",
        "config.optimizer.mu_dtype=bfloat16": wide and settings.optimizer.mu_dtype == "float32",
        "config.param_dtype=bfloat16": wide and settings.param_dtype == "float32",
        "adapters (configs/finetune_lora.py)": wide,
        "config.mesh.data=1 with a larger config.mesh.fsdp, which cuts what data copies": mesh["data"] > 1,
        "more devices over config.mesh.fsdp": platform != "cpu",
        "a machine with more memory (for a smoke test on any: --config=FILE:runlocal)": platform == "cpu",
    }
    *others, last = [choice for choice, helps in choices.items() if helps]
    return f"try {', '.join(others)} or {last}" if others else f"try {last}"


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
