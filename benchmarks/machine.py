"""What benchmarks share: their command line, how they time, and where and with which versions a result was taken."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.shapes import kernel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
Result = dict[str, Any]


def command(doc: str, run: Callable[..., Result], tables: Callable[[Result], str], **flags: dict[str, Any]) -> None:
    """Runs a benchmark with its flags, prints its tables, writes --out."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, options in flags.items():
        parser.add_argument(f"--{name}", **options)
    parser.add_argument("--out", help="a JSON file for benchmarks.report")
    given = vars(parser.parse_args())
    out = given.pop("out")
    found = run(**given)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(found, indent=1) + "\n")
    print(heading(found), tables(found), sep="\n\n")


def result(benchmark: str, records: list[dict[str, Any]], **more: Any) -> Result:
    return {"benchmark": benchmark, "machine": describe(), **more, "records": records}


def describe() -> dict[str, Any]:
    device = jax.devices()[0]
    git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.device_kind} x {jax.device_count()}",
        "platform": device.platform,
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if name in sys.modules},
        "revision": done.stdout.strip() or "unknown",
    }


def processor() -> str:
    """Its name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def heading(result: Result) -> str:
    """One paragraph on where a result comes from."""
    where, measured = result["machine"], ""
    if "peak" in result:
        measured = (
            f"; measured in {result['dtype']}: matrix peak {result['peak'] / 1e12:.3f} TFLOP/s, bandwidth "
            f"{result['bandwidth'] / 1e9:.1f} GB/s"
        )
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['date']}, revision {where['revision']}, {where['device']} ({where['processor']}, {where['cores']} "
        f"cores), Python {where['python']}, {versions}{measured}"
    )


def alternate(programs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of each program. They run in turn, so that a machine that slows down slows all of them."""
    for program in programs.values():
        jax.block_until_ready(program())  # compiles
    seconds: dict[Any, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measured(name: str, preset: Any) -> dict[str, Any]:
    """What a result says of its preset, and what this device reaches, not what its data sheet says: FLOP/s of one large
    matrix product, and bytes per second of products of one matrix, much larger than the caches, with a vector. Of
    noise: a GPU takes less power for ones, and clocks higher than any model lets it."""
    matmul_size, vector_size = preset.sizes
    shapes = (matmul_size, matmul_size), (vector_size, vector_size), (vector_size,)
    a, b, x = (jax.random.normal(jax.random.key(0), shape, preset.dtype) for shape in shapes)
    b /= vector_size**0.5  # which keeps x as large as it is
    square, times = jax.jit(lambda a: a @ a), 8  # a single product is over on a GPU before the next is launched
    products = jax.jit(lambda b, x: jax.lax.fori_loop(0, times, lambda _, x: b @ x, x))

    def fastest(program: Callable[[], Any]) -> float:
        return min(alternate({"once": program}, repeats=1)["once"] for _ in range(5))

    return {
        "preset": name,
        "dtype": preset.dtype,
        "attention": kernel(preset),
        "peak": 2 * matmul_size**3 / fastest(lambda: square(a)),
        "bandwidth": times * b.nbytes / fastest(lambda: products(b, x)),
    }


def memory(program: jax.stages.Compiled) -> int:
    """Bytes on one device while a program runs. Donated arguments are reused for outputs."""
    # Not its peak_memory_in_bytes, which leaves the temporaries out on CPU.
    taken: Any = program.memory_analysis()
    outputs = taken.output_size_in_bytes - taken.alias_size_in_bytes
    return taken.argument_size_in_bytes + outputs + taken.temp_size_in_bytes


def table(rows: list[dict[str, Any]], numbers: bool = True) -> str:
    """Markdown, a row for each dict of column -> cell, which may be missing; three digits of a number. `numbers`: all
    columns but the first are set to the right."""

    def written(cell: Any) -> str:
        return f"{round(float(f'{cell:.3g}'), 3):g}" if isinstance(cell, float) else str(cell)

    columns = list(rows[0])
    lines = [columns, ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]]
    lines += [[written(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
