"""python -m benchmarks.conversion SRC DST --to=orbax: converts, and prints the time and the peak resident memory.

The peak is the process's own high-water mark (ru_maxrss), file pages it had mapped included.
"""

import argparse
import datetime
import importlib.metadata
import platform
import resource
import time
from pathlib import Path

from victor_jax.cli.convert import convert
from victor_jax.weights.read import open_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--to", choices=("hf", "llava", "orbax"), default="orbax")
    given = parser.parse_args()
    size = open_checkpoint(given.source).nbytes
    start = time.perf_counter()
    convert(given.source, given.destination, given.to)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    versions = {name: importlib.metadata.version(name) for name in ("jax", "orbax-checkpoint", "safetensors")}
    print(f"date {datetime.date.today()}, Python {platform.python_version()}, {versions}")
    print(f"checkpoint {size / 1e9:.2f} GB, to {given.to} in {seconds:.0f} s ({size / 1e9 / seconds:.2f} GB/s)")
    print(f"peak resident memory {peak / 1e9:.2f} GB = {peak / size:.2f} of the checkpoint's bytes")


if __name__ == "__main__":
    main()
