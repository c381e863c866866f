"""A program compiled ahead of time: whether it fits, and what it does."""

import re
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax

from victor_jax.analysis.hlo import Program

# libtpu's words for a program that does not fit; they name temporaries and count everything.
EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED.*\(([\d.]+)([KMGT]?)\) exceeds available HBM", re.S)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Compiled:
    """Bytes are those of one device."""

    peak: int  # donated arguments are reused for outputs
    temporaries: int = 0
    reused: int = 0  # of donated arguments, for outputs
    text: str = field(default="", repr=False)  # HLO, empty where the compiler refused: too large
    seconds: float = 0.0  # to compile
    output_shardings: Any = None

    def fits(self, usable: float) -> bool:
        return bool(self.text) and self.peak <= usable

    @cached_property
    def program(self) -> Program:
        return Program.read(self.text)


def compiled(lowered: jax.stages.Lowered) -> Compiled:
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except Exception as error:  # its class differs between versions of jax
        if not (needed := exhausted(str(error))):
            raise
        return Compiled(needed, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory: Any = program.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # A TPU's compiler knows when what is in memory: less than all of it. A GPU's does not say.
    together = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or together
    text = program.as_text() or ""
    return Compiled(
        peak, memory.temp_size_in_bytes, memory.alias_size_in_bytes, text, seconds, program.output_shardings
    )


def exhausted(message: str) -> int:
    """Bytes that a program needs, of a compiler's message; 0 where it is about something else."""
    found = EXHAUSTED.search(message)
    return int(float(found[1]) * UNITS[found[2]]) if found else 0
