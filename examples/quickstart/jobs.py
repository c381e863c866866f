"""Commands of ours as processes: each is printed, shows how far it is, runs once, and is stopped by Ctrl-C so that the
same command goes on.

They are forked from one process that has imported what they share, which takes each of them seconds.
"""

import atexit
import multiprocessing
import os
import runpy
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tqdm import tqdm

from configs.quickstart import get_config
from victor_jax.errors import UserError

FORKED = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """A command of ours, the file that it leaves when it is done, and the file whose lines tell how far it is.

    One without such a file shows its own progress.
    """

    name: str
    command: tuple[str, ...]  # a script, or -m and a module; and arguments
    done: Path
    lines: Path | None = None
    total: int = 0


class Runner:
    """Runs jobs as processes of their own, with a bar for each; stops all of them together."""

    def __init__(self, logs: Path):
        self._logs, self._stop = logs, Event()
        self._one = Lock()  # of two threads that ask at once for an exit code, the second reads 255; to start asks too
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, *chains: Sequence[Job], at_once: int = 1) -> None:
        """So many chains at a time."""
        self.together([partial(self.chain, chain) for chain in chains], at_once)

    def together(self, tasks: Sequence[Callable[[], None]], at_once: int) -> None:
        """So many tasks at a time, each of which runs chains; where one raises, all stop."""
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(task) for task in tasks]
            try:
                for one in running:
                    one.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def chain(self, chain: Sequence[Job]) -> None:
        """One job after the other, without those that are done."""
        for job in chain:
            if not job.done.exists() and not self._stop.is_set():
                self._job(job)

    def _job(self, job: Job) -> None:
        tqdm.write("$ " + shlex.join(("python", *job.command)), file=sys.stdout)
        sys.stdout.flush()
        log = self._logs / f"{job.name.replace(' ', '-')}.log"
        log.unlink(missing_ok=True)
        child = FORKED.Process(target=run_command, args=(job.command, log if job.lines else None))
        with self._one:
            child.start()
        try:
            self._watch(child, job)
        finally:
            with self._one:
                child.terminate()  # nothing, where it has ended
            while self._runs(child):  # join would ask without the lock
                time.sleep(0.05)
        if child.exitcode and not self._stop.is_set():
            said = log.read_text().strip().splitlines() if log.exists() else []
            raise UserError(f"{job.name} failed" + (f": {said[-1]} (all of it is in {log})" if said else ""))

    def _watch(self, child: BaseProcess, job: Job) -> None:
        unit = " steps" if "train.py" in job.command else " questions"
        often = 0.1 if sys.stderr.isatty() else 60.0  # seconds: a log need not hold every step
        with tqdm(total=job.total, desc=job.name, unit=unit, mininterval=often, disable=job.lines is None) as bar:
            while self._runs(child) and not self._stop.is_set():
                time.sleep(0.2)
                bar.update(progress(job) - bar.n)
            bar.update(progress(job) - bar.n)

    def _runs(self, child: BaseProcess) -> bool:
        with self._one:
            return child.is_alive()


def begin(platform: str = "cpu") -> None:
    """Starts what the jobs are forked from, so that it imports while something else is done. They run on `platform`,
    where the environment does not say; empty: what jax finds."""
    os.environ.update(environment(platform))
    FORKED.set_forkserver_preload(["examples.quickstart.forked"])
    forkserver.ensure_running()


def run_command(command: Sequence[str], log: Path | None) -> None:
    """In a forked process, as `python` runs it; what it prints goes to the end of the log if there is one."""
    if log is not None:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # before Python 3.13 a forked process leaves without; jax leaves its cluster there


def progress(job: Job) -> int:
    return job.lines.read_bytes().count(b"\n") if job.lines is not None and job.lines.exists() else 0


def environment(platform: str = "cpu") -> dict[str, str]:
    """Large pages save a third of the time of such small programs on Linux."""
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    defaults = {"JAX_PLATFORMS": platform, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "HF_HUB_OFFLINE": "1"}
    defaults["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that torch is missing: it is not wanted
    return defaults | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}


# --- the commands that quickstart and study have in common ----------------------------------------------------------

ROWS = {"pretrain": "captions", "finetune": "train"}  # of each stage
Recipe = Mapping[str, Mapping[str, Any]]  # of each stage, what differs from configs/quickstart.py


def train(
    name: str, stage: str, method: str, data: Path, start: Path, workdir: Path, seed: int, own: Mapping[str, Any]
) -> Job:
    """One stage; `own` says what differs from its recipe, field by field."""
    command = (
        "train.py",
        f"--config=configs/quickstart.py:{stage},{method}",
        f"--workdir={workdir}",
        f"--config.init_from={start}",
        f"--config.data.path={data / ROWS[stage]}.json",
        f"--config.data.images={data / 'train'}",
        f"--config.data.index={data / 'index'}",
        f"--config.seed={seed}",
        *(f"--config.{field}={value}" for field, value in own.items()),
    )
    total = own.get("total_steps", get_config(stage).total_steps)
    return Job(name, command, workdir / "model", workdir / "metrics.jsonl", total)


def training(
    name: str, method: str, data: Path, start: Path, folder: Path, seed: int, recipe: Recipe | None = None
) -> list[Job]:
    """Stage 1 and stage 2; the model is in `folder`/finetune/model."""
    chain = []
    for stage in ROWS:
        own = (recipe or {}).get(stage, {})
        chain.append(train(f"{name} {stage}", stage, method, data, start, folder / stage, seed, own))
        start = chain[-1].done
    return chain


def evaluation(name: str, model: Path, data: Path, out: Path, *more: str, batch_size: int = 50) -> Job:
    """Questions about digits that were never seen."""
    command = (
        "eval.py",
        "--benchmark=digits",
        f"--model={model}",
        f"--data={data}",
        f"--out={out}",
        "--dtype=float32",
        f"--batch-size={batch_size}",
        *more,
    )
    questions = (data / "digits" / "questions.jsonl").read_text().splitlines()
    return Job(name, command, out / "table.md", out / "digits" / "answers.jsonl", len(questions))
