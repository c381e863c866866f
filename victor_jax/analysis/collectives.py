"""The collectives of a compiled program, read from its text: which, how often, how many bytes.

`compiled.as_text()` names each collective once, however often the loop around it turns. Here each is multiplied by
the trip counts of the loops that it stands in.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "f4e2m1fn": 4, "c64": 64, "c128": 128}

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\((?P<rest>.*)$"
)
ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
LAYOUT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Collective:
    """One collective of the text, on each device that takes part."""

    kind: str
    bytes: int  # of what it delivers or, for a reduce-scatter, of what it takes in
    devices: int  # in one group; 0 where the text does not say
    times: int  # that it runs in one run of the program
    known: bool  # whether all loops around it say how often they turn; if not, those count once
    source: str  # the operation that it serves

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in one run of the program, by the algorithms that send the fewest."""
        share = (self.devices - 1) / self.devices if self.devices else 1.0
        once = {"collective-permute": 1.0, "all-reduce": 2 * share}.get(self.kind, share)
        return self.times * once * self.bytes


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


def collectives(text: str) -> list[Collective]:
    """Of the text of one compiled program, in the order in which it runs them."""
    computations, entry = _parse(text)
    found: list[Collective] = []
    _walk(computations, entry, 1, True, found, set(), within_fusion=False)
    return found


def totals(found: list[Collective]) -> dict[str, tuple[int, int, float]]:
    """Kind -> runs, bytes and wire bytes in one run of the program, the most wire bytes first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for one in found:
        for i, value in enumerate((one.times, one.times * one.bytes, one.wire_bytes)):
            sums[one.kind][i] += value
    ordered = sorted(sums.items(), key=lambda item: -item[1][2])
    return {kind: (int(times), int(size), wire) for kind, (times, size, wire) in ordered}


Computations = dict[str, dict[str, _Instruction]]


def _parse(text: str) -> tuple[Computations, str]:
    computations: Computations = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            header = COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header["name"], {})
                entry = header["name"] if header["entry"] else entry
            continue
        if (match := INSTRUCTION.match(line)) and current is not None:
            current[match["name"]] = _Instruction(match["name"], match["type"], match["opcode"], match["rest"])
    return computations, entry


def _walk(
    computations: Computations,
    name: str,
    times: int,
    known: bool,
    found: list[Collective],
    pieces: set[str],
    *,
    within_fusion: bool,
) -> None:
    for one in computations.get(name, {}).values():
        kind = one.opcode.removesuffix("-start")
        if kind in KINDS:
            # A TPU program may do one collective in pieces, each fused with some arithmetic: they share a channel.
            channel = one.attribute(r"channel_id=(\d+)") if within_fusion else None
            if channel is None or channel not in pieces:
                found.append(_collective(one, kind, times, known))
            if channel is not None:
                pieces.add(channel)
        elif one.opcode == "while":
            turns = _trip_count(computations, name, one)
            body = one.attribute(r"body=%?([\w.\-]+)") or ""
            _walk(computations, body, times * (turns or 1), known and turns is not None, found, set(),
                  within_fusion=False)  # fmt: skip
        elif one.opcode in ("fusion", "call", "async-start", "conditional"):
            fused = one.opcode == "fusion"
            for called in _called(one):
                _walk(computations, called, times, known, found, pieces if fused else set(), within_fusion=fused)


def _called(one: _Instruction) -> Iterator[str]:
    yield from re.findall(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", one.rest)
    if branches := one.attribute(r"branch_computations=\{([^}]*)\}"):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def _collective(one: _Instruction, kind: str, times: int, known: bool) -> Collective:
    devices = _group_size(one)
    size = _bytes(one.type)
    if one.opcode.endswith("-start"):
        size = _started_bytes(one.type, kind)
    if kind == "reduce-scatter":
        size *= max(devices, 1)
    source = one.attribute(r'op_name="([^"]*)"') or ""
    return Collective(kind, size, devices, times, known, source)


def _started_bytes(written: str, kind: str) -> int:
    """The start of an asynchronous collective has the type (operands, results, …); of an all-reduce, results only."""
    parts = _split(LAYOUT.sub("", written)[1:-1]) if written.startswith("(") else [written]
    if kind == "all-reduce" or len(parts) == 1:
        return _bytes(written)
    return _bytes(parts[1])


def _split(listed: str) -> list[str]:
    """`a, (b, c), d` at its outer commas."""
    parts, depth = [""], 0
    for letter in listed:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _bytes(written: str) -> int:
    """Of an array or a tuple of them: `bf16[2,3]{1,0}`."""
    bits = 0
    for dtype, shape in ARRAY.findall(LAYOUT.sub("", written)):
        number = re.search(r"\d+", dtype)
        width = BITS.get(dtype) or (int(number[0]) if number else 0)  # s32, f8e4m3fn, u16 …; token[] has none
        bits += width * math.prod(int(n) for n in shape.split(",") if n)
    return bits // 8


def _group_size(one: _Instruction) -> int:
    """Devices in one replica group, in any of the three spellings."""
    if listed := one.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return listed.count(",") + 1
    if iota := one.attribute(r"replica_groups=\[([\d,]+)\]<="):
        return int(iota.split(",")[-1])
    if sizes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", one.rest):
        of_axis = {name.strip(): int(size) for name, size in (axis.split("=") for axis in sizes[1].split(","))}
        return math.prod(of_axis[name.strip()] for name in sizes[2].split(","))
    return 0


def _trip_count(computations: Computations, name: str, loop: _Instruction) -> int | None:
    """How often a loop turns: the compiler says so, or a counter runs from a constant to a constant by ones."""
    if said := loop.attribute(r'"?known_trip_count"?:\{"?n"?:"?(\d+)'):
        return int(said)
    condition = computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "", {})
    for test in condition.values():
        if test.opcode != "compare" or test.attribute(r"direction=(\w+)") != "LT":
            continue
        operands = re.findall(r"%([\w.\-]+)", test.rest.split(")")[0])
        if len(operands) != 2:
            continue
        index = condition[operands[0]].attribute(r"index=(\d+)") if operands[0] in condition else None
        limit = _constant(condition, operands[1])
        start = _start(computations[name], loop, index)
        if limit is not None and start is not None:
            return max(limit - start, 0)
    return None


def _start(computation: dict[str, _Instruction], loop: _Instruction, index: str | None) -> int | None:
    """The counter's first value: the index-th part of the tuple that the loop begins with."""
    begin = computation.get((re.match(r"%?([\w.\-]+)", loop.rest) or [""])[0].lstrip("%"))
    if begin is None or begin.opcode != "tuple" or index is None:
        return None
    parts = re.findall(r"%([\w.\-]+)", begin.rest.split("), ")[0])
    return _constant(computation, parts[int(index)]) if int(index) < len(parts) else None


def _constant(computation: dict[str, _Instruction], name: str) -> int | None:
    one = computation.get(name)
    while one is not None and one.opcode in ("copy", "bitcast", "convert"):
        one = computation.get(one.rest.split(")")[0].lstrip("%"))
    if one is None or one.opcode != "constant":
        return None
    written = one.rest.split(")")[0]
    return int(written) if re.fullmatch(r"-?\d+", written) else None
