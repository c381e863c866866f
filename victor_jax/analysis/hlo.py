"""A compiled program, read from its HLO text: its instructions, and how often each of them runs.

jax tells of them nowhere else. The text names each instruction once, however often the loop around it runs: here each
comes with the product of the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# `%name (parameters) -> type {` begins a computation, `  %name = type opcode(operands), attributes` is in it.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z\d]*\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|[^\s,]+)")
RUNS_CALLED = ("call", "conditional", "async-start")  # what other instructions call is a part of them: fused, applied


@dataclass(frozen=True)
class Array:
    shape: tuple[int, ...]
    bits: int  # of one number
    on_chip: bool  # in a TPU's memory beside its cores: no traffic of HBM

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.bits // 8


@dataclass(frozen=True)
class Instruction:
    name: str
    type: str  # as written, `bf16[2,3]{1,0}` or a tuple of such
    opcode: str
    rest: str  # operands and attributes
    is_root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        """Of the result."""
        return [
            # s32, f8e4m3fn, pred; token[] takes nothing
            Array(tuple(int(n) for n in shape.split(",") if n), 8 if kind == "pred" else int(width or 0), "S(" in order)
            for kind, width, shape, order in ARRAY.findall(self.type)
        ]

    @cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    @cached_property
    def called(self) -> list[str]:
        return [name for names in CALLED.findall(self.rest) for name in re.findall(r"[\w.\-]+", names)]

    @property
    def source(self) -> str:
        """The operation of the model that it belongs to."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


@dataclass(frozen=True)
class Run:
    """An instruction where the program runs it."""

    instruction: Instruction
    computation: str  # that the instruction is in
    times: int  # in one run of the program
    known: bool  # False where the length of a loop around it is unknown: that loop counts once
    outside: tuple[str, ...] | None  # where it is part of another instruction: the way there, else None


@dataclass(frozen=True)
class Program:
    computations: dict[str, dict[str, Instruction]]  # by name, in the order in which they run

    @classmethod
    def read(cls, text: str) -> "Program":
        computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := COMPUTATION.match(line):
                current = computations.setdefault("ENTRY" if header[1] else header[2], {})
            elif found := INSTRUCTION.match(line):
                current[found[2]] = Instruction(found[2], found[3], found[4], found[5], bool(found[1]))
        return cls(computations)

    def runs(
        self, start: str = "ENTRY", times: int = 1, known: bool = True, way: tuple[str, ...] = (), part: bool = False
    ) -> Iterator[Run]:
        """Everything that a computation runs, in that order."""
        for one in self.computations.get(start, {}).values():
            yield Run(one, start, times, known, way if part else None)
            if one.opcode == "while":
                turns = self._trip_count(one)
                body = one.attribute(r"body=%?([\w.\-]+)") or ""
                yield from self.runs(body, times * (turns or 1), known and turns is not None, (*way, one.name))
            elif not one.opcode.endswith("-done"):
                inside = part or one.opcode not in RUNS_CALLED
                for name in one.called:
                    yield from self.runs(name, times, known, way if inside else (*way, one.name), inside)

    def loop(self) -> str:
        """The body of the longest loop that the program begins: that over new tokens, in decoding."""
        loops = [one for one in self.computations["ENTRY"].values() if one.opcode == "while"]
        bodies = [one.attribute(r"body=%?([\w.\-]+)") or "" for one in loops]
        return max(bodies, key=lambda body: sum(1 for _ in self.runs(body)))

    def origin(self, computation: str, name: str, at: int = 0) -> str:
        """The argument of the program that a value is, or was when the loop around it began; else nothing. `at`: of a
        tuple."""
        one = self.computations[computation].get(name)
        if one is None:
            return ""
        if one.opcode == "parameter" and computation == "ENTRY":
            return one.source
        if one.opcode == "parameter" and computation in self._loops:
            outside, loop = self._loops[computation]
            return self.origin(outside, loop.operands[0], at)
        if one.opcode == "get-tuple-element":
            return self.origin(computation, one.operands[0], int(one.attribute(r"index=(\d+)") or 0))
        if one.opcode == "tuple":
            return self.origin(computation, one.operands[at])
        if one.opcode in ("while", "bitcast", "copy", "transpose", "opt-barrier"):
            return self.origin(computation, one.operands[0], at)
        return ""

    @cached_property
    def _loops(self) -> dict[str, tuple[str, Instruction]]:
        """Body -> the loop that runs it, and the computation that the loop is in."""
        return {
            one.attribute(r"body=%?([\w.\-]+)") or "": (name, one)
            for name, inside in self.computations.items()
            for one in inside.values()
            if one.opcode == "while"
        }

    def _trip_count(self, loop: Instruction) -> int | None:
        """The compiler says so, or the condition compares the counter with a constant: loops of jax count from zero."""
        if said := loop.attribute(r"known_trip_count\W+n\W+(\d+)"):
            return int(said)
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "", {}).values()
        if not any(one.opcode == "compare" and "direction=LT" in one.rest for one in condition):
            return None
        constants = [re.match(r"(\d+)\)", one.rest) for one in condition if one.opcode == "constant"]
        limits = [int(found[1]) for found in constants if found]
        return limits[0] if len(limits) == 1 else None
