"""python -m benchmarks.startup [--out=FILE]: how long a user waits for the first answer.

The small model of the `cpu` preset is written to a folder. Then a fresh process (benchmarks.first_answer) loads it and
answers, once with an empty compile cache and once with the cache that the first one left.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.inference import TEXT
from benchmarks.shapes import PRESETS, prompts
from victor_jax.models.config import VLMConfig

SPEC = "victor:registers=8,layer=3"


def run(config: VLMConfig = PRESETS["cpu"].config) -> machine.Result:
    from victor_jax.weights import fresh  # needs more than the model code
    from victor_jax.weights.write import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_checkpoint(fresh.checkpoint(config, seed=0, dtype="bfloat16"), path / "model", "hf")
        ids, pixels = prompts(config, 2, TEXT)
        np.savez(path / "prompts.npz", ids=ids, pixels=pixels)
        records = [{"cache": cache, **_in_a_fresh_process(path)} for cache in ("empty", "warm")]
    return machine.result("startup", records, compression=SPEC)


def _in_a_fresh_process(path: Path) -> dict[str, Any]:
    """What it says of itself, and the seconds from the start of the process to its first answer."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(path / "compiled")}
    command = [sys.executable, "-m", "benchmarks.first_answer", str(path), SPEC]
    began = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the process that answers has failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    return {"waited": said.pop("answered_at") - began, **said}


def tables(result: machine.Result) -> str:
    """Markdown of a result."""
    rows = []
    for record in result["records"]:
        row = {"compile cache": record["cache"], "start to first answer s": record["waited"]}
        row |= {f"{part} s": record["seconds"][part] for part in ("import", "load")}
        row |= {f"{call} answer s": record["seconds"][call] for call in ("first", "second")}
        row |= {f"programs of the {call} answer": record["programs"][call] for call in ("first", "second")}
        rows.append(row)
    return machine.table(rows)


if __name__ == "__main__":
    machine.command(__doc__, run, tables)
