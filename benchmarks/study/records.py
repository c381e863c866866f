"""A point's result: one small JSON file per size, point and seed, and what is read off several of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.study.grid import SIZES, points, setting
from victor_jax.errors import UserError
from victor_jax.files import write_whole

RESULTS = Path(__file__).parents[1] / "results" / "study"
ALL = "all"  # beside numbers of steps: questions of any kind
Record = dict[str, Any]


def file_of(folder: Path, size: str, point: str, seed: int) -> Path:
    return folder / size / f"{point}-seed{seed}.json"


def write(record: Record, folder: Path) -> None:
    """A line for each entry, so that two results can be compared by eye."""
    file = file_of(folder, record["size"], record["point"], record["seed"])
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    write_whole(file, "{\n" + ",\n".join(lines) + "\n}\n")


@dataclass(frozen=True)
class Results:
    """All results of one size."""

    records: dict[tuple[str, int], Record]  # by point and seed

    @classmethod
    def read(cls, folder: Path, size: str) -> "Results":
        """Those of the grid as it is now; others do not count."""
        found, now = {}, {point: setting(size, point) for point in points(SIZES[size])}
        for file in sorted((folder / size).glob("*.json")):
            try:
                record = json.loads(file.read_text())
                if record["setting"] == now.get(record["point"]):
                    found[record["point"], record["seed"]] = record
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{file} is no result of the study: remove it, and its point is measured again"
                ) from None
        return cls(found)

    def of(self, *points: str) -> dict[int, list[Record]]:
        """By seed, the results of these points, where all of them are there."""
        seeds = sorted({seed for _, seed in self.records})
        return {
            seed: [self.records[point, seed] for point in points]
            for seed in seeds
            if all((point, seed) in self.records for point in points)
        }

    def one(self, point: str) -> Record:
        """Of any seed, for what seeds have in common."""
        return next(iter(self.of(point).values()))[0]


def accuracy(record: Record, *steps: int) -> float:
    """Share of right answers to questions of so many steps; without a number, to all of them."""
    of = record["accuracy"]["steps"]
    return float(np.mean([of[str(number)] for number in steps])) if steps else record["accuracy"][ALL]


def mean_flops(results: "Results", point: str) -> float:
    """To the first token. Seeds differ where a method chooses."""
    return float(np.mean([records[0]["flops"] for records in results.of(point).values()]))


def timed(record: Record) -> bool:
    """Whether it is known how long a step of its training takes."""
    return all("seconds_per_step" in stage for stage in record["training"].values())


def training_cost(record: Record, what: str) -> float:
    """FLOPs or seconds of both stages."""
    return sum(stage["steps"] * stage[f"{what}_per_step"] for stage in record["training"].values())


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds and its 95 % interval by Student's t, which wants two seeds at the least."""

    seeds: int
    mean: float
    half: float  # of the width of the interval; infinite for one seed

    @classmethod
    def over(cls, values: Iterable[float]) -> "Estimate | None":
        found = np.array(list(values))
        if not found.size:
            return None
        if found.size == 1:
            return cls(1, float(found[0]), float("inf"))
        half = stdtrit(found.size - 1, 0.975) * found.std(ddof=1) / found.size**0.5
        return cls(found.size, float(found.mean()), float(half))

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half
