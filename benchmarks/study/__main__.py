"""python -m benchmarks.study [run | list | report] [--sizes=small] [--claims=… | --points=…] [--seeds=3]

`run` measures what the claims need and has no result yet, by the same commands as the quickstart; it goes on where it
was stopped. `list` says what they need and what is there. `report` makes the tables, figures and verdicts of
docs/study.md from the result files alone.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax

from benchmarks.machine import table
from benchmarks.study.claims import CLAIMS
from benchmarks.study.grid import SIZES, chosen, points, trainings
from benchmarks.study.measure import Workplace
from benchmarks.study.records import RESULTS, Results, timed
from benchmarks.study.report import DEFAULT, report
from examples.quickstart.jobs import Runner, begin
from victor_jax.errors import UserError, exit_status

DOCUMENT = Path(__file__).parents[2] / "docs" / "study.md"
CORE = "learnt,victor-8,none-*,k*,vtw-*"  # the claims that are measured where none are named
# Trainings whose time is part of a claim.
TIMED = {point for claim in CLAIMS if claim.name == "cost-seconds" for point in claim.effect.points}
Todo = dict[tuple[str, int], list[str]]  # of a training and a seed, the points that are asked


def wanted(given: argparse.Namespace, size: str) -> list[str]:
    """The points that are named, or that the claims need."""
    every = list(points(SIZES[size]))
    if given.points:
        return chosen(given.points, every, "point")
    names = chosen(given.claims, [claim.name for claim in CLAIMS], "claim")
    needed = {point for claim in CLAIMS if claim.name in names for point in claim.effect.points}
    return [point for point in every if point in needed]


def missing(given: argparse.Namespace, size: str) -> Todo:
    """All of one seed before the next, so that there is something to see early. A training that others start from is
    among them though nothing is asked of it: its model may not be there."""
    done, found = Results.read(given.results, size).records, defaultdict[tuple[str, int], list[str]](list)
    for seed in range(given.seeds):
        for point in wanted(given, size):
            if (point, seed) not in done or (point in TIMED and not timed(done[point, seed])):
                training = points(SIZES[size])[point].training
                found[training, seed].append(point)
                if start := trainings(SIZES[size])[training].start:
                    found.setdefault((start, seed), [])
    return found


def run(given: argparse.Namespace) -> None:
    everything = {size: missing(given, size) for size in given.sizes}
    on_cpu = platform() == "cpu"
    at_once = given.at_once or (max(2, (os.cpu_count() or 1) // 2) if on_cpu else 1)
    begin("cpu" if on_cpu else "")
    runner = Runner(given.out / "logs")
    failed: list[str] = []
    for size, todo in everything.items():
        if not todo:
            continue
        place = Workplace(size, given.out / size, given.results, runner, batch_size=50 if on_cpu else 400)
        place.prepare(sorted({seed for _, seed in todo}), at_once)
        for name, seed in (one for one, asked in todo.items() if one[0] in TIMED and asked):
            attempt(partial(place.time, name, seed), f"the time of {name} of seed {seed}", failed)
        later = {one: asked for one, asked in todo.items() if trainings(SIZES[size])[one[0]].start}
        for some in ({one: asked for one, asked in todo.items() if one not in later}, later):
            tasks = [
                partial(attempt, partial(place.measure, name, seed, asked), f"{name} of seed {seed}", failed)
                for (name, seed), asked in some.items()
            ]
            runner.together(tasks, at_once)
    if failed:
        raise UserError(f"{len(failed)} trainings failed ({', '.join(failed)}): the same command tries them again")


def platform() -> str:
    """What jax finds, in a process of its own: this one must not take a GPU's memory."""
    command = [sys.executable, "-c", "import jax; print(jax.devices()[0].platform)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def attempt(work: Callable[[], None], name: str, failed: list[str]) -> None:
    """The others go on where one fails."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        failed.append(name)


def show(given: argparse.Namespace) -> None:
    """What is wanted at each size, and which seeds of it are there."""
    for size in given.sizes:
        results, of = Results.read(given.results, size), points(SIZES[size])
        rows = []
        for point in wanted(given, size):
            seeds = ", ".join(map(str, results.of(point)))
            training = trainings(SIZES[size])[of[point].training]
            rows.append({size: point, "trained": training.compression, "asked": of[point].asked, "seeds": seeds})
        print(table(rows, numbers=False), end="\n\n")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="?", choices=("run", "list", "report"), default="run")
    parser.add_argument("--sizes", default=DEFAULT, help=f"of {', '.join(SIZES)}, joined by commas ({DEFAULT})")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--claims", default=CORE, help=f"what these need, by name or pattern; '*' for all ({CORE})")
    which.add_argument(
        "--points", help="instead, points by name or pattern: 'victor-*-k1,vtw-k1', or '*' for the whole grid"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (3)")
    parser.add_argument("--at-once", type=int, help="trainings at a time (half of the cores, on a GPU one)")
    parser.add_argument("--out", type=Path, default=Path("study"), help="what the commands leave (study)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder of result files")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="what `report` fills (docs/study.md)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    jax.config.update("jax_platforms", "cpu")  # here it only counts FLOPs; devices are for the commands

    def command() -> None:
        given.sizes = chosen(given.sizes, list(SIZES), "size")
        if given.what == "report":
            print(report(given.results, given.document))
        else:
            (run if given.what == "run" else show)(given)

    return exit_status(command, interrupted="stopped: the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
