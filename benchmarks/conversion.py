"""python -m benchmarks.conversion --size=7b --to=orbax [--out=FILE]: time and peak memory of `victor-jax convert`.

The checkpoint is random bfloat16 in LLaVA-1.5's shapes (13.5 GB for 7b), in the folder for temporary files. The peak is
the high-water mark of the process that converts (ru_maxrss), mapped file pages included.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from victor_jax.models.sizes import SIZES


def run(size: str, to: str) -> machine.Result:
    from victor_jax.weights import fresh  # needs more than the model code
    from victor_jax.weights.write import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        source, checkpoint = Path(folder) / "source", fresh.checkpoint(SIZES[size], seed=0, dtype="bfloat16")
        write_checkpoint(checkpoint, source, "hf")
        command = [sys.executable, "-m", "victor_jax", "convert", str(source), f"{folder}/converted", f"--to={to}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    record = {"name": f"{size}, hf to {to}", "bytes": checkpoint.nbytes, "seconds": seconds, "peak": peak}
    return machine.result("conversion", [record])


def tables(result: machine.Result) -> str:
    """Markdown of a result."""
    rows = []
    for name, size, seconds, peak in map(dict.values, result["records"]):
        read = {"": name, "checkpoint GB": size / 1e9, "seconds": seconds, "GB/s": size / 1e9 / seconds}
        rows.append(read | {"peak resident GB": peak / 1e9, "of the checkpoint": peak / size})
    return machine.table(rows)


if __name__ == "__main__":
    formats = ("hf", "llava", "orbax")
    machine.command(
        __doc__, run, tables, size={"choices": SIZES, "default": "small"}, to={"choices": formats, "default": "orbax"}
    )
