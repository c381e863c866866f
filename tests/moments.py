"""python tests/moments.py [--rounds=3] [--seed=0] [--only=train]: signals at random moments, to all that writes.

Each command runs once undisturbed. Then it is sent SIGINT, SIGTERM, each of them twice, or SIGKILL, anywhere between
its start and its end, and given again until it ends well. After every end there must be one line and a known status,
nothing half-written (after SIGKILL under no final name), and at last the same result as of the undisturbed run.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_run
import talking
from soak import saved

from victor_jax.weights.read import open_checkpoint

SIGNALS = [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT,) * 2, (signal.SIGTERM,) * 2, (signal.SIGKILL,)]
STEPS = 30
TMP = "*orbax-checkpoint-tmp*"


@dataclass(frozen=True)
class Task:
    command: Callable[[Path], list[str]]  # that writes this folder
    result: Callable[[Path], Any]  # what a whole folder holds
    appears_whole: bool  # the folder, at the end
    leaves_partial: bool = False  # for the next start
    sigterm: int = 143  # the status after it


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: np.asarray(tensor.load()).tobytes() for name, tensor in open_checkpoint(folder).tensors.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tasks(root: Path) -> dict[str, Task]:
    start, data = small_run.write_start(root), small_run.write_data(root / "data")
    talking.saved(root / "talking", "victor:registers=3,layer=2")
    (root / "digits" / "images").mkdir(parents=True)
    for number in range(60):
        talking.picture(number).save(root / "digits" / "images" / f"{number}.png")
    row = '{"question_id": N, "image": "N.png", "text": "How many cats?", "category": "count", "answer": "two"}'
    (root / "digits" / "questions.jsonl").write_text("\n".join(row.replace("N", str(number)) for number in range(60)))
    changes = small_run.overrides(start, data, total_steps=STEPS, checkpoint__every=2, mesh__data=1, mesh__fsdp=1)
    ours = [sys.executable, "-m", "victor_jax"]

    def convert(to: str) -> Task:
        return Task(lambda out: [*ours, "convert", str(start), str(out), f"--to={to}"], tensors, appears_whole=True)

    def pack(out: Path) -> list[str]:
        sources = [f"{data / 'data.json'}=30", str(out), f"--images={data}", "--rows-per-shard=50"]
        return [*ours, "pack-data", *sources]

    def evaluate(out: Path) -> list[str]:
        given = [f"--model={root / 'talking'}", "--benchmark=digits", f"--data={root}", f"--out={out}"]
        given += ["--batch-size=2", "--processes=1"]
        return [sys.executable, str(small_run.ROOT / "eval.py"), *given]

    return {
        "train": Task(
            lambda out: small_run.command(out, changes),
            lambda out: {name: leaf.tobytes() for name, leaf in saved(out, STEPS).items()} | tensors(out / "model"),
            appears_whole=False,
        ),
        **{f"convert --to={to}": convert(to) for to in ("hf", "orbax")},
        "pack-data": Task(pack, files, appears_whole=True, leaves_partial=True),
        "eval": Task(
            evaluate, lambda out: (out / "digits" / "answers.jsonl").read_bytes(), appears_whole=False, sigterm=130
        ),
    }


def run(command: list[str], signals: tuple[int, ...] = (), delay: float = 0.0) -> tuple[int, str]:
    """Its exit status and what it said."""
    child = subprocess.Popen(
        command, env=small_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(delay)
    for number in signals:
        child.send_signal(number)
        time.sleep(0.05)
    _, said = child.communicate(timeout=600)
    return child.returncode, said


def problems(task: Task, out: Path, number: int, status: int, said: str, expected: Any) -> list[str]:
    """What is wrong after an end by this signal."""
    found = []
    if number != signal.SIGKILL:
        if status not in (
            0,
            130 if number == signal.SIGINT else task.sigterm,
            -number,
        ):  # the last: before the program had begun
            found.append(f"status {status}")
        if "Traceback" in said and status != -number:
            found.append("a traceback")
        found += [f"left {path}" for path in (out / "checkpoints").glob(TMP)]
        partial = out.with_name(out.name + ".partial")
        found += [f"left {path}" for path in (partial, out / "model.partial") if path.exists()]
        if task.leaves_partial:
            found = [one for one in found if one != f"left {partial}"]
    if task.appears_whole and out.exists() and task.result(out) != expected:
        found.append("it is not whole")
    if (out / "model").exists():
        tensors(out / "model")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    rng, wrong, tried = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="moments-") as folder:
        root = Path(folder)
        small_run.share_compile_cache(root / "compiled")
        for name, task in tasks(root).items():
            if not name.startswith(given.only):
                continue
            run(task.command(root / "warm"))
            begun = time.monotonic()
            status, said = run(task.command(root / "undisturbed"))
            assert status == 0, said
            seconds, expected = time.monotonic() - begun, task.result(root / "undisturbed")
            print(f"{name}: {seconds:.1f} s undisturbed", flush=True)
            for _ in range(given.rounds):
                out = root / "out"
                for signals in rng.sample(SIGNALS, len(SIGNALS)):
                    delay = rng.uniform(0.3, 1) * seconds
                    status, said = run(task.command(out), signals, delay)
                    found = problems(task, out, signals[0], status, said, expected)
                    tried, wrong = tried + 1, wrong + bool(found)
                    called = " and ".join(signal.Signals(number).name for number in signals)
                    print(f"  {called} after {delay:.2f} s: status {status}; {'; '.join(found) or 'as it should be'}")
                    if found:
                        print("    " + "\n    ".join(said.splitlines()[-30:]), flush=True)
                    if status == 0 or task.appears_whole:
                        shutil.rmtree(out, ignore_errors=True)
                status, said = run(task.command(out))
                if status or task.result(out) != expected:
                    wrong += 1
                    print(f"  NOT the same at last: status {status}\n{said[-500:]}")
                shutil.rmtree(out, ignore_errors=True)
            for leftover in ("warm", "undisturbed"):
                shutil.rmtree(root / leftover)
    print(f"{tried} signals, {wrong} ends that were not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
