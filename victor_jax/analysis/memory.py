"""What a compiled step takes of one device's memory, by kind."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# libtpu's words for a program that does not fit; they speak of temporaries and mean everything.
EXHAUSTED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: dict[str, int]  # by kind: they live through the step, updated in place
    temporaries: int  # activations, gradients, gathered weights: what the step makes and drops
    available: int | None  # where the compiler said so
    fits: bool

    @property
    def total(self) -> int:
        return sum(self.arguments.values()) + self.temporaries


def device_bytes(tree: Any) -> int:
    """Of abstract arrays with shardings, on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def of_compiled(compiled: Any, arguments: Mapping[str, Any]) -> Memory:
    """Of a program that was compiled, for arguments given by kind: where it takes the most at once."""
    held = {kind: device_bytes(tree) for kind, tree in arguments.items()}
    peak = compiled.memory_analysis().peak_memory_in_bytes  # below arguments + temporaries: what is given up is reused
    return Memory(held, max(peak - sum(held.values()), 0), None, fits=True)


def of_failure(message: str, arguments: Mapping[str, Any]) -> Memory | None:
    """Of a program that was too large to compile; None where the message is about something else."""
    if "RESOURCE_EXHAUSTED" not in message or not (found := EXHAUSTED.search(message)):
        return None
    needed, available = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
    held = {kind: device_bytes(tree) for kind, tree in arguments.items()}
    return Memory(held, max(needed - sum(held.values()), 0), available, fits=False)
