"""What a result must carry to mean anything: where, when, with which versions and revision it was measured."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
PEERS = ("torch", "transformers")


def describe(peers: bool = False) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.device_kind} x {jax.device_count()}",
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES + (PEERS if peers else ())},
        "revision": _revision(),
        "matmul_precision": str(getattr(jax.config, "jax_default_matmul_precision", None)),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"


def heading(result: dict[str, Any]) -> str:
    """One paragraph on where a result comes from."""
    where = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    line = (
        f"{where['date']}, revision {where['revision']}, {where['device']} ({where['processor']}, {where['cores']} "
        f"cores), Python {where['python']}, {versions}"
    )
    if "peak" not in result:
        return line
    return (
        f"{line}; measured in {result['dtype']}: matrix peak {result['peak'] / 1e12:.3f} TFLOP/s, bandwidth "
        f"{result['bandwidth'] / 1e9:.1f} GB/s"
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


def matmul_peak(dtype: Any, size: int) -> float:
    """FLOP/s of one large matrix product: what this device reaches, not what its data sheet says."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / _fastest(lambda: product(a))


def bandwidth(dtype: Any, size: int) -> float:
    """Bytes per second of reading one large matrix (products with a vector, as decoding does all day).

    Several in one program, because a single one is over on a GPU before the next is launched. The matrix must be
    much larger than the caches.
    """
    times = 8
    a, x = jnp.ones((size, size), dtype) / size, jnp.ones((size,), dtype)
    product = jax.jit(lambda a, x: jax.lax.fori_loop(0, times, lambda _, x: a @ x, x))
    return times * a.nbytes / _fastest(lambda: product(a, x))


def _fastest(program: Callable[[], Any]) -> float:
    """Seconds, of five: a peak is what was reached once."""
    return min(alternate({"once": program}, repeats=1)["once"] for _ in range(5))


def compile_all(lowered: dict[Any, Callable[[], jax.stages.Lowered]]) -> dict[Any, jax.stages.Compiled]:
    """Side by side: XLA compiles on the cores that tracing leaves idle."""

    def compiled(lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        return lower().compile()

    with ThreadPoolExecutor() as pool:
        waiting = {key: pool.submit(compiled, lower) for key, lower in lowered.items()}
        return {key: future.result() for key, future in waiting.items()}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a program runs. What it gives up of its arguments, its results take over."""

    arguments: int
    results: int  # beyond the arguments
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.results + self.temporaries


def memory(program: jax.stages.Compiled) -> Memory:
    # Not its peak_memory_in_bytes, which leaves the temporaries out on CPU.
    analysis: Any = program.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(analysis.argument_size_in_bytes, results, analysis.temp_size_in_bytes)


def write(path: str | None, result: dict[str, Any]) -> None:
    """Moved into place when it is whole."""
    if path:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.rename(file)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
