"""python tests/warm_restarts.py [--restarts=10]: two CPU processes train, are told to stop and start again, all with
one compile cache that the environment asks for. Prints how many restarts went on from the step before.

What XLA:CPU reads from the cache may wait for ever in its collectives (victor_jax/compile_cache.py).
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from soak import logged

STEPS = 2  # of each start
SECONDS = 300  # until a start counts as hung


def start_once(workdir: Path, environment: dict[str, str]) -> bool:
    """Whether both processes trained `STEPS` steps more and left in peace when one was told to stop."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{probe.getsockname()[1]}", "--processes=2"]
    recipe = "--config=configs/finetune.py:registers=8,layer=3,runlocal"
    settings = ["--config.total_steps=100000", "--config.mesh.fsdp=2", "--config.evaluation.every=0"]
    command = [sys.executable, "train.py", recipe, f"--workdir={workdir}", *settings, *together]
    done, limit = logged(workdir), time.monotonic() + SECONDS
    with (workdir.parent / "log").open("a") as log:
        both = [
            subprocess.Popen([*command, f"--process_id={one}"], env=environment, stdout=log, stderr=log)
            for one in (0, 1)
        ]
    try:
        while logged(workdir) < done + STEPS and all(child.poll() is None for child in both):
            if time.monotonic() > limit:
                return False
            time.sleep(0.1)
        both[0].send_signal(signal.SIGTERM)
        return [child.wait(SECONDS) for child in both] == [0, 0]
    except subprocess.TimeoutExpired:
        return False
    finally:
        for child in both:
            child.kill()
            child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--restarts", type=int, default=10)
    restarts = parser.parse_args().restarts
    with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in a third of the time
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for number in range(restarts + 1):
            if not start_once(Path(folder) / "run", environment):
                print(f"start {number} failed:\n{(Path(folder) / 'log').read_text()}")
                return 1
            print(f"{number} of {restarts} warm restarts survived, {logged(Path(folder) / 'run')} steps", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
