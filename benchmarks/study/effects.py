"""What a claim is about: a number for each seed, read off the results of some points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.study.grid import LENGTHS
from benchmarks.study.records import Estimate, Record, Results, accuracy, training_cost


@dataclass(frozen=True)
class Effect:
    """`value` takes the records of `points`, of one seed; None: those records cannot tell."""

    says: str
    points: tuple[str, ...]
    value: Callable[..., float | None]
    unit: str = "%"

    def estimate(self, results: Results) -> Estimate | None:
        values = (self.value(*records) for records in results.of(*self.points).values())
        return Estimate.over([value for value in values if value is not None])


def right(point: str, *steps: int) -> Effect:
    return Effect(f"right, `{point}`{_on(steps)}", (point,), lambda one: accuracy(one, *steps))


def loss(point: str, *steps: int, of: str = "full") -> Effect:
    """As the paper counts: the share that is lost of what the other one answers."""

    def value(one: Record, other: Record) -> float:
        return 1 - accuracy(one, *steps) / accuracy(other, *steps)

    return Effect(f"share of `{of}` that `{point}` loses{_on(steps)}", (point, of), value)


def gain(point: str, over: str, *steps: int) -> Effect:
    def value(one: Record, other: Record) -> float:
        return accuracy(one, *steps) - accuracy(other, *steps)

    return Effect(f"`{point}` minus `{over}`{_on(steps)}", (point, over), value, "points")


def kept(point: str) -> Effect:
    def value(one: Record, full: Record, floor: Record) -> float:
        return (accuracy(one) - accuracy(floor)) / (accuracy(full) - accuracy(floor))

    return Effect(f"share of `full` above the floor that `{point}` keeps", (point, "full", "no-image"), value)


def spent(point: str, of: str) -> Effect:
    """To the first token of an answer."""

    def value(one: Record, other: Record) -> float:
        return one["flops"] / other["flops"]

    return Effect(f"share of `{of}`'s FLOPs that `{point}` spends", (point, of), value)


def saved(point: str, what: str) -> Effect:
    """`what`: "flops" or "seconds" of training, both to the accuracy that both reach; trainings of several lengths give
    each a curve."""
    mine, full = trained_shorter(point), trained_shorter("full")

    def value(*records: Record) -> float | None:
        if what == "seconds" and not comparable(records):
            return None
        one, other = records[: len(mine)], records[len(mine) :]
        target = min(accuracy(one[-1]), accuracy(other[-1]))
        return 1 - cost_to_reach(target, one, what) / cost_to_reach(target, other, what)

    says = f"share of `full`'s {what} of training that `{point}` saves at equal accuracy"
    return Effect(says, (*mine, *full), value)


def comparable(records: Sequence[Record]) -> bool:
    """Whether their times are: of one device, which each training had for itself."""
    return len({record["where"]["device"] for record in records}) == 1 and {r["at_once"] for r in records} == {1}


def trained_shorter(point: str) -> list[str]:
    """The point after trainings of several lengths, the shortest first and its own last."""
    return [*(f"{point}-{length}" for length in LENGTHS), point]


def cost_to_reach(target: float, records: Sequence[Record], what: str) -> float:
    """Between trainings, the shortest first and the last of which reaches it, on straight lines."""
    costs = [training_cost(record, what) for record in records]
    best = np.maximum.accumulate([accuracy(record) for record in records])
    at = int(np.argmax(best >= target))
    if at == 0:
        return costs[0]
    share = (target - best[at - 1]) / (best[at] - best[at - 1])
    return float(costs[at - 1] + share * (costs[at] - costs[at - 1]))


def _on(steps: tuple[int, ...]) -> str:
    if not steps:
        return ""
    first, last = ", ".join(map(str, steps[:-1])), f"{steps[-1]} step{'' if steps == (1,) else 's'}"
    return f", on questions of {first} and {last}" if first else f", on questions of {last}"
