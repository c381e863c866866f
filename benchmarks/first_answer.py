"""python -m benchmarks.first_answer FOLDER SPEC: what benchmarks.startup times, in a process of its own.

It answers twice at equal shapes: the second answer must compile nothing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

COMPILED = "/jax/core/compile/backend_compile_duration"


def main(path: Path, spec: str) -> dict[str, Any]:
    """Seconds of each part, and how often the compiler was asked for a program."""
    began = time.perf_counter()
    import jax  # the imports are timed
    import numpy as np

    import victor_jax

    load = victor_jax.load  # resolved, and imported, when it is named
    imported, requests = time.perf_counter(), []  # to the compiler or its cache
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: requests.append(event))
    vlm, given = load(path / "model", spec, dtype="float32", seed=0), np.load(path / "prompts.npz")
    seconds = {"import": imported - began, "load": time.perf_counter() - imported}
    programs, answered_at = {}, []
    for call in ("first", "second"):
        before, began = requests.count(COMPILED), time.perf_counter()
        vlm.generate_ids(given["ids"], given["pixels"], max_new_tokens=16)
        seconds[call], programs[call] = time.perf_counter() - began, requests.count(COMPILED) - before
        answered_at.append(time.time())
    return {"seconds": seconds, "programs": programs, "answered_at": answered_at[0]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
