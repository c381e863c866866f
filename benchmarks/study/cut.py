"""python -m benchmarks.study.cut MODEL OUT --registers=4: a checkpoint with the first of its registers alone.

`eval.py` refuses to ask a model with fewer registers than it was trained with, since its answers get worse. By how
much is what the study asks.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from victor_jax.errors import exit_status
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import first_rows
from victor_jax.weights.write import write_checkpoint


def cut(model: Path, out: Path, registers: int) -> None:
    whole = open_checkpoint(model)
    of = whole.tensors[REGISTERS]
    fewer = whole.tensors | {REGISTERS: first_rows(of, (registers, *of.shape[1:]))}
    compression = whole.compression.replace(f"registers={of.shape[0]}", f"registers={registers}")
    write_checkpoint(replace(whole, tensors=fewer, compression=compression), out, "hf")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.cut",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--registers", type=int, required=True)
    given = parser.parse_args()
    return exit_status(lambda: cut(given.model, given.out, given.registers))


if __name__ == "__main__":
    sys.exit(main())
