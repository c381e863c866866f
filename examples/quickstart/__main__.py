"""python -m examples.quickstart [--out=quickstart] [--seed=0]: the whole story on real images, in minutes.

Draws canvases of scanned digits, gives a tiny model sight, and then runs the same commands that the 7B recipe uses:
train.py (both stages) for four methods, eval.py on digits that were never seen, convert, heatmap. Each command is
printed before it runs; everything is left in one folder. The same command goes on where it was stopped.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tqdm import tqdm

from examples.quickstart.digits import Task, read_task, write_digits
from examples.quickstart.report import READING, as_table, draw, read_rows
from victor_jax.errors import UserError, exit_status

# All but `full` drop the 64 visual tokens after the same layer; the slowest comes first.
METHODS = {
    "full": "full",
    "victor-8": "registers=8,layer=2",
    "victor-2": "registers=2,layer=2",
    "vtw": "vtw,layer=2",
}
DATA = {"pretrain": "captions.json", "finetune": "train.json"}
TRAININGS = 2  # at a time
TIMED = 30  # steps, for how long one takes


@dataclass(frozen=True)
class Job:
    """A command of ours, the file that it leaves when it is done, and the file whose lines tell how far it is.

    One without such a file shows its own progress.
    """

    name: str
    command: tuple[str, ...]
    done: Path
    lines: Path | None = None
    total: int = 0


def sight(out: Path) -> Job:
    command = ("-m", "examples.quickstart.sight", str(out / "data"), str(out / "start"))
    return Job("sight", command, out / "start")


def training(out: Path, method: str) -> list[Job]:
    """Stage 1 and stage 2 of one method."""
    pretrain = train(out, method, "pretrain", out / "start", out / method / "pretrain")
    return [pretrain, train(out, method, "finetune", pretrain.done, out / method / "finetune")]


def timing(out: Path, method: str) -> Job:
    """The first steps of stage 2, to be run when nothing else runs."""
    return train(out, method, "finetune", out / "start", out / method / "timing", TIMED)


def train(out: Path, method: str, stage: str, start: Path, workdir: Path, steps: int = 0) -> Job:
    command = (
        "train.py",
        f"--config=configs/quickstart.py:{stage},{METHODS[method]}",
        f"--workdir={workdir}",
        f"--config.init_from={start}",
        f"--config.data.path={out / 'data' / DATA[stage]}",
        f"--config.data.images={out / 'data' / 'train'}",
        f"--config.seed={read_task(out / 'data').seed}",
        *([f"--config.total_steps={steps}"] if steps else []),
    )
    name = f"{method} {workdir.name}"
    return Job(name, command, workdir / "model", workdir / "metrics.jsonl", steps or steps_of(stage))


def evaluation(out: Path, method: str, blind: bool = False) -> Job:
    folder = out / method / ("blind" if blind else "eval")
    questions = out / "data" / "questions.jsonl"
    command = (
        "eval.py",
        "--benchmark=digits",
        f"--model={out / method / 'finetune' / 'model'}",
        f"--questions={questions}",
        f"--images={out / 'data' / 'test'}",
        f"--out={folder}",
        "--dtype=float32",
        "--batch-size=50",
        *(["--blind"] if blind else []),
    )
    total = len(questions.read_text().splitlines())
    name = f"{method} asked {'without images' if blind else 'about unseen digits'}"
    return Job(name, command, folder / "result.json", folder / "answers.jsonl", total)


def leftovers(out: Path) -> list[Job]:
    """The model in Hugging Face's layout, and what its registers read."""
    model = out / "victor-2" / "finetune" / "model"
    image, picture = out / "data" / "test" / "000000.png", out / "registers.png"
    look = (f"--model={model}", f"--image={image}", f"--out={picture}", "--prompt=Which digit is the largest?")
    return [
        Job("export", ("-m", "victor_jax", "convert", str(model), str(out / "model-hf"), "--to=hf"), out / "model-hf"),
        Job("heat-map", ("-m", "victor_jax", "heatmap", *look), picture),
    ]


def steps_of(stage: str) -> int:
    from configs.quickstart import get_config

    return get_config(stage).total_steps


# --- running --------------------------------------------------------------------------------------------------------


class Runner:
    """Runs jobs as processes of their own, with a bar for each; stops all of them together."""

    def __init__(self, logs: Path):
        self._logs = logs
        self._stop = Event()
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, *chains: Sequence[Job], at_once: int = 1) -> None:
        """So many chains at a time."""
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(self._chain, chain) for chain in chains]
            try:
                for one in running:
                    one.result()
            except BaseException:
                self._stop.set()
                raise

    def _chain(self, chain: Sequence[Job]) -> None:
        for job in chain:
            if not job.done.exists() and not self._stop.is_set():
                self._job(job)

    def _job(self, job: Job) -> None:
        tqdm.write("$ " + shlex.join(("python", *job.command)), file=sys.stdout)
        sys.stdout.flush()
        log = self._logs / f"{job.name.replace(' ', '-')}.log"
        with log.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, *job.command],
                stdout=file if job.lines else None,
                stderr=subprocess.STDOUT if job.lines else None,
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours to hand on: as SIGTERM, which saves
            )
        try:
            self._watch(child, job)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                child.wait()
        if child.returncode and not self._stop.is_set():
            said = log.read_text().strip().splitlines()
            raise UserError(f"{job.name} failed" + (f": {said[-1]} (all of it is in {log})" if said else ""))

    def _watch(self, child: subprocess.Popen, job: Job) -> None:
        unit = " steps" if "train.py" in job.command else " questions"
        with tqdm(total=job.total, desc=job.name, unit=unit, disable=job.lines is None) as bar:
            while child.poll() is None and not self._stop.is_set():
                time.sleep(0.2)
                bar.update(progress(job) - bar.n)
            bar.update(progress(job) - bar.n)


def progress(job: Job) -> int:
    return job.lines.read_bytes().count(b"\n") if job.lines is not None and job.lines.exists() else 0


def environment() -> dict[str, str]:
    """Large pages save a third of the time of such small programs on Linux."""
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    defaults = {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "HF_HUB_OFFLINE": "1"}
    defaults["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that torch is missing: it is not wanted
    return defaults | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}


# --- the story ------------------------------------------------------------------------------------------------------

NEXT = """With a real checkpoint (README.md has the whole recipe):
  victor-jax convert llava-1.5-7b-hf llava-orbax --to=orbax      # any PyTorch LLaVA folder, equal to 1e-5
  python train.py --config=configs/finetune.py:registers=8,layer=3 --workdir=stage2 --config.init_from=…
  python eval.py --model=stage2/model --benchmark=… --questions=… --images=… --out=answers"""


def tell(out: Path, seed: int) -> None:
    print("1. The data: scanned digits on canvases, questions about them, a tokenizer of their words.", flush=True)
    write_digits(out / "data", Task(seed=seed))
    print("2. Stage 0: a vision tower learns to see. With a real model, CLIP brings this.", flush=True)
    runner = Runner(out / "logs")
    runner.run([sight(out)])
    print("3. Stage 1 and stage 2 of the real recipe, for each method; `full` keeps all visual tokens.", flush=True)
    runner.run(*(training(out, method) for method in METHODS), at_once=TRAININGS)
    print(
        "4. Questions about digits that no part of the model ever saw, and once without the images. One after",
        flush=True,
    )
    print(
        "   the other, as the first steps of training again, so that their speed is that of a quiet machine.",
        flush=True,
    )
    asked = [*(evaluation(out, method) for method in METHODS), evaluation(out, "full", blind=True)]
    runner.run(asked + [timing(out, method) for method in METHODS])
    print("5. The model in Hugging Face's layout, and what its registers read.", flush=True)
    runner.run(leftovers(out))
    rows, floor = read_rows(out, list(METHODS))
    table = as_table(rows, floor)
    (out / "results.md").write_text(table + "\n")
    draw(rows, floor, out / "accuracy.png")
    print(f"\n{table}\n\n{READING}\n")
    for name, what in LEFT.items():
        print(f"  {out / name!s:<32} {what}")
    print(f"\n{NEXT}")


LEFT = {
    "results.md": "the table",
    "accuracy.png": "accuracy over compute",
    "registers.png": "what each register read",
    "model-hf": "the model with registers, in Hugging Face's layout",
    "logs": "what each command said",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        return exit_status(lambda: tell(given.out, given.seed))
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
