"""What a claim is about: a number for each seed, read off the results of some points."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.study.records import Estimate, Record, Results, accuracy, timed

SMOOTH = 5  # of the shares that a log is kept in: one of them may be lucky


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


def saved(point: str, of: str, what: str) -> Effect:
    """`what`: "flops" or "seconds" of training, to the loss that both reach, read off their logs."""

    def value(one: Record, other: Record) -> float | None:
        if what == "seconds" and not comparable(one, other):
            return None
        target = max(losses(one).min(), losses(other).min())
        return 1 - cost_to_reach(target, one, what) / cost_to_reach(target, other, what)

    return Effect(f"share of `{of}`'s {what} of training that `{point}` saves at equal loss", (point, of), value)


def comparable(*records: Record) -> bool:
    """Whether their times are: of one device."""
    return len({record["where"]["device"] for record in records}) == 1 and all(map(timed, records))


def losses(record: Record) -> np.ndarray:
    """Of stage 2: running means over SMOOTH of the equal shares that its log is kept in."""
    return np.convolve(record["training"]["finetune"]["loss"], np.full(SMOOTH, 1 / SMOOTH), "valid")


def cost_to_reach(target: float, record: Record, what: str) -> float:
    """Of stage 1 and as much of stage 2, which reaches that loss."""
    first, second = (stage["steps"] * stage[f"{what}_per_step"] for stage in record["training"].values())
    reached = int(np.argmax(losses(record) <= target))
    return float(first + second * (reached + SMOOTH) / len(record["training"]["finetune"]["loss"]))


def _on(steps: tuple[int, ...]) -> str:
    if not steps:
        return ""
    first, last = ", ".join(map(str, steps[:-1])), f"{steps[-1]} step{'' if steps == (1,) else 's'}"
    return f", on questions of {first} and {last}" if first else f", on questions of {last}"
