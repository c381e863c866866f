"""The collectives of a compiled program: which, how often, how many bytes."""

import math
import re
from dataclasses import dataclass

from victor_jax.analysis.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective of the text, on each device that takes part."""

    kind: str
    bytes: int  # of its result; of a reduce-scatter, of its operand
    devices: int  # in one group; 0 where the text does not say
    times: int  # that it runs in one run of the program
    known: bool  # False where the length of a loop around it is unknown: that loop counts once
    source: str  # the operation of the model that it belongs to

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in one run of the program, by the algorithms that send the fewest."""
        share = (self.devices - 1) / self.devices if self.devices else 1.0
        once = {"collective-permute": 1.0, "all-reduce": 2 * share}.get(self.kind, share)
        return self.times * once * self.bytes


def collectives(program: Program, start: str = "ENTRY") -> list[Collective]:
    """In the order in which the computation `start` runs them.

    A TPU program may do one collective in pieces, each fused with some arithmetic. They share a channel: it counts once
    among the fusions of one computation.
    """
    found, pieces = [], set()
    for run in program.runs(start):
        one, kind = run.instruction, run.instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if run.outside is not None and (channel := one.attribute(r"channel_id=(\d+)")):
            if (run.outside, channel) in pieces:
                continue
            pieces.add((run.outside, channel))
        devices = _group_size(one.rest)
        size = _result_bytes(one) * (max(devices, 1) if kind == "reduce-scatter" else 1)
        found.append(Collective(kind, size, devices, run.times, run.known, one.source))
    return found


def totals(found: list[Collective]) -> dict[str, tuple[int, int, float]]:
    """Kind -> runs, bytes and wire bytes in one run of the program, the most wire bytes first."""
    sums: dict[str, tuple[int, int, float]] = {}
    for one in found:
        runs, size, wire = sums.get(one.kind, (0, 0, 0.0))
        sums[one.kind] = (runs + one.times, size + one.times * one.bytes, wire + one.wire_bytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def _result_bytes(one: Instruction) -> int:
    """The start of an asynchronous collective is (operands, results, scalars of its own); of an all-reduce, results
    only."""
    arrays = one.arrays
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start" and one.type.startswith("("):
        arrays = [array for array in arrays if array.shape]
        arrays = arrays[len(arrays) // 2 :]
    return sum(array.bytes for array in arrays)


def _group_size(rest: str) -> int:
    """Devices in one replica group, in any of the three spellings: a list, an iota, axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"(\w+)'?=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", mesh[2]))
    return 0
