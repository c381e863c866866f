"""The collectives of a compiled program, read from its HLO text: which, how often, how many bytes.

jax tells of them nowhere else. The text names each collective once, however often the loop around it runs: here each is
multiplied by the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# `%name (parameters) -> type {` begins a computation, `  %name = type opcode(operands), attributes` is in it.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z\d]*\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|[^\s,]+)")

Computations = dict[str, list[tuple[str, ...]]]  # name -> (type, opcode, operands and attributes)


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


def collectives(text: str) -> list[Collective]:
    """Of the text of one compiled program, in the order in which it runs them."""
    computations: Computations = {}
    current: list[tuple[str, ...]] = []
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            current = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif instruction := INSTRUCTION.match(line):
            current.append(instruction.groups())
    return list(_walk(computations, "ENTRY"))


def totals(found: list[Collective]) -> dict[str, tuple[int, int, float]]:
    """Kind -> runs, bytes and wire bytes in one run of the program, the most wire bytes first."""
    sums: dict[str, tuple[int, int, float]] = {}
    for one in found:
        runs, size, wire = sums.get(one.kind, (0, 0, 0.0))
        sums[one.kind] = (runs + one.times, size + one.times * one.bytes, wire + one.wire_bytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def _walk(
    computations: Computations, name: str, times: int = 1, known: bool = True, pieces: set[str] | None = None
) -> Iterator[Collective]:
    """A TPU program may do one collective in pieces, each fused with some arithmetic. They share a channel: `pieces`
    are the channels seen by the fusions of one computation; outside fusions it is None."""
    fused = set() if pieces is None else pieces
    for written, opcode, rest in computations.get(name, ()):
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            channel = _first(r"channel_id=(\d+)", rest)
            if pieces is not None and channel:
                if channel in pieces:
                    continue
                pieces.add(channel)
            devices = _group_size(rest)
            size = _result_bytes(written, opcode) * (max(devices, 1) if kind == "reduce-scatter" else 1)
            yield Collective(kind, size, devices, times, known, _first(r'op_name="([^"]*)"', rest) or "")
        elif opcode == "while":
            turns = _trip_count(computations, rest)
            body = _first(r"body=%?([\w.\-]+)", rest) or ""
            yield from _walk(computations, body, times * (turns or 1), known and turns is not None)
        elif not opcode.endswith("-done"):
            for called in CALLED.findall(rest):
                for each in re.findall(r"[\w.\-]+", called):
                    yield from _walk(computations, each, times, known, fused if opcode == "fusion" else None)


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _result_bytes(written: str, opcode: str) -> int:
    """Of an array or a tuple, `bf16[2,3]{1,0}`. The start of an asynchronous collective is (operands, results,
    scalars of its own); of an all-reduce, results only."""
    arrays = ARRAY.findall(written)
    if opcode.endswith("-start") and opcode != "all-reduce-start" and written.startswith("("):
        arrays = [array for array in arrays if array[2]]
        arrays = arrays[len(arrays) // 2 :]
    bits = 0
    for letters, width, shape in arrays:  # s32, f8e4m3fn, pred; token[] takes nothing
        one = 8 if letters == "pred" else int(width or 0)
        bits += one * math.prod(int(n) for n in shape.split(",") if n)
    return bits // 8


def _group_size(rest: str) -> int:
    """Devices in one replica group, in any of the three spellings: a list, an iota, axes of a mesh."""
    if listed := _first(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed.count(",") + 1
    if iota := _first(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest):
        return int(iota)
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"(\w+)'?=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", mesh[2]))
    return 0


def _trip_count(computations: Computations, loop: str) -> int | None:
    """The compiler says so, or the condition compares the counter with a constant: loops of jax count from zero."""
    if said := _first(r"known_trip_count\W+n\W+(\d+)", loop):
        return int(said)
    condition = computations.get(_first(r"condition=%?([\w.\-]+)", loop) or "", [])
    if not any(opcode == "compare" and "direction=LT" in rest for _, opcode, rest in condition):
        return None
    limits = [
        int(constant[1])
        for _, opcode, rest in condition
        if opcode == "constant" and (constant := re.match(r"(\d+)\)", rest))
    ]
    return limits[0] if len(limits) == 1 else None
