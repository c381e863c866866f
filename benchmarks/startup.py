"""python -m benchmarks.startup [--out=FILE]: how long a user waits for the first answer.

The small model of the `cpu` preset is written to a folder; then a fresh process loads it and answers, once with an
empty compile cache and once with the cache that the first one left. Each process answers twice at equal shapes: the
second answer must compile nothing.
"""

# What takes time to import stands in the functions that need it: the process that answers times its own imports.
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from victor_jax.models.config import VLMConfig

SPEC = "victor:registers=8,layer=3"
NEW_TOKENS = 16
CACHES = ("empty", "warm")


def run(config: "VLMConfig") -> dict[str, Any]:
    import numpy as np

    from benchmarks import machine
    from benchmarks.inference import TEXT, pixels
    from benchmarks.shapes import prompts
    from victor_jax.weights import fresh
    from victor_jax.weights.write import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_checkpoint(fresh.checkpoint(config, seed=0, dtype="bfloat16"), path / "model", "hf", lambda _: None)
        np.savez(path / "prompts.npz", ids=prompts(config, 2, TEXT), pixels=pixels(config, 2))
        records = [{"cache": cache, **_in_a_fresh_process(path)} for cache in CACHES]
    return {"benchmark": "startup", "machine": machine.describe(), "compression": SPEC, "records": records}


def _in_a_fresh_process(path: Path) -> dict[str, Any]:
    """What `answer` says of itself there, and the seconds from the start of the process to its first answer."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(path / "compiled")}
    command = [sys.executable, "-m", "benchmarks.startup", f"--answer={path}"]
    began = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the process that answers has failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    return {"waited": said.pop("answered_at") - began, **said}


def answer(path: Path) -> dict[str, Any]:
    """Seconds of each part, and how often the compiler was asked for a program."""
    began = time.perf_counter()
    import jax
    import numpy as np

    import victor_jax

    load = victor_jax.load  # resolved, and imported, when it is named
    imported = time.perf_counter()
    asked: list[str] = []  # of the compiler or its cache

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            asked.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    vlm = load(path / "model", SPEC, dtype="float32")
    loaded = time.perf_counter()
    seconds, programs = [], []
    answered_at = 0.0
    given = np.load(path / "prompts.npz")
    ids, images = given["ids"], given["pixels"]
    for _ in range(2):
        before, start = len(asked), time.perf_counter()
        vlm.generate_ids(ids, images, max_new_tokens=NEW_TOKENS)
        seconds.append(time.perf_counter() - start)
        programs.append(len(asked) - before)
        answered_at = answered_at or time.time()
    return {
        "seconds": {"import": imported - began, "load": loaded - imported, "first": seconds[0], "second": seconds[1]},
        "programs": {"first": programs[0], "second": programs[1]},
        "answered_at": answered_at,
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown of a result."""
    from benchmarks import machine

    columns = ["compile cache", "start to first answer s", "import s", "load s", "first answer s", "second answer s"]
    rows = [
        [record["cache"], f"{record['waited']:.1f}"]
        + [f"{record['seconds'][part]:.2f}" for part in ("import", "load", "first", "second")]
        + [str(record["programs"][call]) for call in ("first", "second")]
        for record in result["records"]
    ]
    return machine.table([*columns, "programs compiled or fetched, first call", "second call"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="a JSON file")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        print(json.dumps(answer(given.answer)))
        return

    from benchmarks import machine
    from benchmarks.inference import PRESETS

    result = run(PRESETS["cpu"].config)
    machine.write(given.out, result)
    print(machine.heading(result), tables(result), sep="\n\n")


if __name__ == "__main__":
    main()
