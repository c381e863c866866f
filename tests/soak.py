"""python tests/soak.py [--kills=20] [--seed=0]: training killed at random moments ends bit-identical all the same.

The recipe of a smoke test runs once undisturbed, and once killed again and again by SIGKILL, each time restarted by the
same command. Prints where each kill fell, and compares parameters and optimizer of the last step.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

STEPS = 60
READY = ", loss "  # train.py says it after its first step
EARLY = 5  # every n-th kill falls before that, while modules, data and checkpoint are being read
SECONDS = 600  # until a start counts as hung


@dataclass(frozen=True)
class Kill:
    steps: int  # that were logged
    saving: bool  # a checkpoint was being written
    early: bool  # before the first step of this start


def kill_once(command: list[str], workdir: Path, log: Path, delay: float, early: bool = False) -> Kill | None:
    """Starts the command and kills it `delay` seconds after its first step (`early`: its start).

    None: it ended before.
    """
    with log.open("a") as file:
        begin = file.tell()
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        limit = time.monotonic() + SECONDS
        while not early and READY not in log.read_text()[begin:]:
            if child.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the run did not begin:\n{log.read_text()[begin:]}")
            time.sleep(0.02)
        try:
            if child.wait(delay) == 0:
                return None
            raise RuntimeError(f"the run failed:\n{log.read_text()[begin:]}")
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    saving = any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))
    return Kill(logged(workdir), saving, early)


def logged(workdir: Path) -> int:
    """How many steps metrics.jsonl tells of; the kill may have cut its last line."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] + 1 if whole else 0


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Parameters and optimizer of a checkpoint, as they are on disk."""
    leaves: dict[str, Any] = {}
    for item in ("params", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / item)
        leaves |= {f"{item}/{path}": np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
    return leaves


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of leaves that are not equal to the last bit."""
    names = sorted(one.keys() | other.keys())
    return [
        name for name in names if name not in one or name not in other or one[name].tobytes() != other[name].tobytes()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root = Path(folder)
        arguments = [f"--config.total_steps={STEPS}", "--config.checkpoint.every=1", "--config.evaluation.every=0"]

        def command(workdir: Path) -> list[str]:
            recipe = "--config=configs/finetune.py:registers=8,layer=3,runlocal"
            return [sys.executable, "train.py", recipe, f"--workdir={workdir}", *arguments]

        start = time.monotonic()
        subprocess.run(command(root / "undisturbed"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        print(f"undisturbed: {STEPS} steps in {seconds:.0f} s, each of them saved", flush=True)
        kills, number = 0, 0
        while kills < given.kills:
            number += 1
            early = number % EARLY == 0
            delay = rng.uniform(0, 6 if early else 3 * seconds / STEPS)
            kill = kill_once(command(root / "killed"), root / "killed", root / "log", delay, early)
            if kill is None:
                print(f"the run ended after {kills} kills: give more steps")
                return 1
            kills += 1
            where = "in a save" if kill.saving else "while starting" if kill.early else "between saves"
            print(f"kill {kills}: after {delay:.2f} s, {kill.steps} steps logged, {where}", flush=True)
        subprocess.run(command(root / "killed"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        undisturbed, killed = (saved(root / name, STEPS) for name in ("undisturbed", "killed"))
        different = differing(undisturbed, killed)
        steps = [json.loads(line)["step"] for line in (root / "killed" / "metrics.jsonl").read_text().splitlines()]
        if different or steps != list(range(STEPS)):
            print(f"NOT identical: {', '.join(different)}; steps {steps}")
            return 1
        print(
            f"after {kills} kills, all {len(killed)} arrays of parameters and optimizer are bit-identical to those of "
            f"the undisturbed run, and metrics.jsonl holds each of the {STEPS} steps once"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
