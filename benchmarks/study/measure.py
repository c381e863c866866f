"""A training of the grid as commands of ours, and the results of its points read off what they leave."""

import datetime
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.methods import prefill_flops
from benchmarks.study.grid import SIZES, Size, model_setting, points, setting, trainings, written
from benchmarks.study.records import ALL, Record, write
from examples.quickstart.digits import write_digits
from examples.quickstart.jobs import ROWS, Job, Recipe, Runner, evaluation, training
from examples.quickstart.questions import KINDS
from examples.quickstart.report import PROMPT
from victor_jax.compression.spec import parse
from victor_jax.evaluation.digits import is_right
from victor_jax.models.vlm import VLMModule
from victor_jax.results import keep_settings, read_json
from victor_jax.weights.read import open_checkpoint

LABELS = 1500  # rows that a choice is learnt from
TIMED_STEPS = 150  # of stage 2
CURVE = 50  # losses that a result keeps of each stage


@dataclass(frozen=True)
class Workplace:
    """Where one size is measured."""

    name: str  # of the size
    folder: Path  # what the commands leave
    results: Path
    runner: Runner
    batch_size: int  # of evaluation

    @property
    def size(self) -> Size:
        return SIZES[self.name]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, seed: int) -> Path:
        """The model that trainings from scratch start from, of one seed."""
        return self.folder / f"start-seed{seed}"

    def trained(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-seed{seed}"

    def asked(self, point: str, seed: int) -> Path:
        return self.trained(points(self.size)[point].training, seed) / "asked" / point

    def prepare(self, seeds: Iterable[int], at_once: int) -> None:
        """The data, the same for all seeds, and each seed's start."""
        keep_settings(model_setting(self.name), self.folder, self.folder / "models")
        write_digits(self.data, self.size.task)
        self.runner.together([partial(self.runner.chain, [self.sight(seed)]) for seed in seeds], at_once)

    def measure(self, name: str, seed: int, wanted: list[str]) -> None:
        """Trains, asks what the points `wanted` of that training ask, and writes their results."""
        of = trainings(self.size)
        for one in filter(None, (of[name].start, name)):
            keep_settings(written(of[one]), self.trained(one, seed), self.trained(one, seed) / "stages")
        chain = [*self.training(name, seed), *(job for point in wanted for job in self.asking(point, seed))]
        self.runner.chain(chain)
        if all(job.done.exists() for job in chain):  # else it was stopped
            for point in wanted:
                write(self.record(point, seed), self.results)

    def time(self, name: str, seed: int) -> None:
        """Few steps of both stages, to be run while nothing else runs: they tell how long one takes."""
        self.runner.chain(self.training(name, seed, timed=True))

    def sight(self, seed: int) -> Job:
        where = (str(self.data), str(self.start(seed)), f"--depth={self.size.depth}", f"--seed={seed}")
        return Job(f"{self.name} sight seed{seed}", ("-m", "examples.quickstart.sight", *where), self.start(seed))

    def training(self, name: str, seed: int, timed: bool = False) -> list[Job]:
        """`timed`: a short one, in a folder of its own."""
        of, own = trainings(self.size)[name], self.size.recipe
        recipe = lengthened(own, {"pretrain": of.stage1, "finetune": of.stage2})
        label, folder = f"{self.name} {name} seed{seed}", self.trained(name, seed)
        if timed:
            label, folder = f"{label} timed", folder / "timed"
            recipe = {**recipe, "finetune": {**recipe["finetune"], "total_steps": TIMED_STEPS}}
        start = self.trained(of.start, seed) / "finetune" / "model" if of.start else self.start(seed)
        return training(label, of.compression, self.data, start, folder, seed, recipe)

    def asking(self, name: str, seed: int) -> list[Job]:
        point = points(self.size)[name]
        trained, label = self.trained(point.training, seed), f"{self.name} {name} seed{seed} asked"
        model, out = trained / "finetune" / "model", self.asked(name, seed)
        more = ["--blind"] if point.blind else [f"--compression={point.asked}"] if point.asked else []
        if point.policy:
            taught = trained / "policies" / name
            flags = {"model": model, "compression": point.policy, "data": self.data / "train.json"}
            flags |= {"images": self.data / "train", "out": taught, "limit": LABELS, "seed": seed}
            flags |= {"dtype": "float32", "batch-size": 50}
            given = (f"--{name}={value}" for name, value in flags.items())
            teaching = Job(f"{label} policy", ("-m", "victor_jax", "train-policy", *given), taught / "model")
            return [teaching, evaluation(label, taught / "model", self.data, out, *more, batch_size=self.batch_size)]
        if not point.cut:
            return [evaluation(label, model, self.data, out, *more, batch_size=self.batch_size)]
        cut = trained / f"cut-to-{point.cut}"
        command = ("-m", "benchmarks.study.cut", str(model), str(cut), f"--registers={point.cut}")
        cutting = Job(f"{label} cut", command, cut)
        return [cutting, evaluation(label, cut, self.data, out, *more, batch_size=self.batch_size)]

    # --- results ----------------------------------------------------------------------------------------------------

    def record(self, point: str, seed: int) -> Record:
        out = self.asked(point, seed) / "digits"
        result = read_json(out / "result.json")
        settings, chosen = result["settings"], result.get("chosen")
        trained = self.trained(points(self.size)[point].training, seed)
        config = open_checkpoint(trained / "finetune" / "model").config
        return {
            "size": self.name,
            "point": point,
            "seed": seed,
            "asked": settings["compression"],
            "accuracy": accuracies(out / "answers.jsonl"),
            # To the first token; of a method that chooses, what its choices come to.
            "flops": round(
                prefill_flops(VLMModule(config, parse(settings["compression"], config)), 1, PROMPT)
                * (chosen["spent"] if chosen else 1)
            ),
            **({"chosen": choices(out / "answers.jsonl")} if chosen else {}),
            "training": {stage: trained_stage(trained / stage, trained / "timed" / stage) for stage in ROWS},
            "where": where(settings),
            "setting": setting(self.name, point),
        }


def where(settings: dict[str, Any]) -> dict[str, str]:
    """What a result of eval.py says of its origin, and on a CPU of which."""
    device = settings["device"]
    return {
        "date": datetime.date.today().isoformat(),
        "revision": settings["revision"],
        "device": f"{machine.processor()}, {os.cpu_count()} cores" if device == "cpu" else device,
        "python": settings["versions"]["python"],
        "jax": settings["versions"]["jax"],
    }


def lengthened(recipe: Recipe, times: dict[str, float]) -> Recipe:
    """With so many times as many steps of each stage."""
    return {
        stage: {**fields, "total_steps": round(times[stage] * fields["total_steps"])}
        for stage, fields in recipe.items()
    }


def accuracies(answers: Path) -> dict[str, Any]:
    """Shares of right answers: of all, by kind of question, and by how many steps it has."""
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    kinds, steps = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    for row in rows:
        right = is_right(row["text"], row["answer"])
        kinds[row["category"]].append(right)
        steps[str(KINDS[row["category"]].steps)].append(right)
    return {
        ALL: share([right for of_kind in kinds.values() for right in of_kind]),
        "steps": {number: share(steps[number]) for number in sorted(steps)},
        "kinds": {kind: share(right) for kind, right in kinds.items()},
        "questions": len(rows),
    }


def choices(answers: Path) -> dict[str, dict[str, float]]:
    """By how many steps a question has, the share of answers that each plan gave."""
    of_steps = defaultdict[str, Counter[str]](Counter)
    for row in map(json.loads, answers.read_text().splitlines()):
        of_steps[str(KINDS[row["category"]].steps)][row["compression"]] += 1
    return {
        steps: {plan: round(times / counts.total(), 5) for plan, times in sorted(counts.items())}
        for steps, counts in sorted(of_steps.items())
    }


def share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 5)


def trained_stage(folder: Path, timed: Path) -> dict[str, Any]:
    """Cost and losses of a stage; its time where a short one was timed."""
    lines = logged(folder)
    windows = np.array_split(np.array([line["loss"] for line in lines]), min(CURVE, len(lines)))
    return {
        "steps": len(lines),
        "flops_per_step": round(sum(line["flops"] for line in lines) / len(lines)),
        **({"seconds_per_step": seconds_per_step(timed)} if (timed / "model").exists() else {}),
        "loss": [round(float(window.mean()), 4) for window in windows],  # means of equal shares of the steps
    }


def seconds_per_step(folder: Path) -> float:
    """A median: the first step compiles."""
    return round(median(line["step_time"] for line in logged(folder)), 5)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
