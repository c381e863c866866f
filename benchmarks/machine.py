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


def alternate(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each program. They run in turn, so that a machine that slows down slows all of them."""
    for program in programs.values():
        jax.block_until_ready(program())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in programs}
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
    return 2 * size**3 / alternate({"matmul": lambda: product(a)}, repeats=5)["matmul"]


def bandwidth(dtype: Any, size: int) -> float:
    """Bytes per second of reading one large matrix once (a product with a vector)."""
    a, x = jnp.ones((size, size), dtype), jnp.ones((size,), dtype)
    product = jax.jit(lambda a, x: a @ x)
    return a.nbytes / alternate({"matvec": lambda: product(a, x)}, repeats=5)["matvec"]


def write(path: str | None, result: dict[str, Any]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
