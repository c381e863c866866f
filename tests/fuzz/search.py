"""Tries inputs of one surface, and counts."""

import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from fuzz.property import HangsError, Surface, tried
from victor_jax.limits import shown

SHOWN = 800  # characters of a finding


@dataclass
class Tally:
    tried: int = 0
    worked: int = 0
    refused: int = 0
    seconds: float = 0.0  # the most of one input
    megabytes: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)  # by place: what, and what shows it again
    reasons: Counter = field(default_factory=Counter)


def search(surface: Surface, number: int, examples: int, tally: Tally, again: bool = False) -> None:
    """Inputs drawn from seed `number`. A finding ends this search; it is noted once, by the place that it comes from.
    `again`: with the smallest input that shows it."""
    last: tuple[str, str, str] | None = None

    def one(value: Any) -> None:
        nonlocal last
        try:
            done = tried(surface, value)
        except (Exception, HangsError) as error:
            place = place_of(error)
            if place in tally.findings:
                return
            last = place, f"{type(error).__name__}: {error}"[:SHOWN], shown(value)[:SHOWN]
            raise AssertionError(last) from error
        tally.tried += 1
        tally.worked += not done.refusal
        tally.refused += bool(done.refusal)
        tally.seconds, tally.megabytes = max(tally.seconds, done.seconds), max(tally.megabytes, done.megabytes)

    configured = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if again else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        seed(number)(configured(given(surface.inputs)(one)))()
    except (AssertionError, Flaky):
        if last is None:
            raise
        place, what, value = last
        tally.findings[place] = (
            f"{what}\n  at {place}\n  input {value}\n  again: make fuzz SURFACE={surface.name} SEED={number}"
        )


def place_of(error: BaseException) -> str:
    """The innermost line of ours, or of these tests."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    frame = ([frame for frame in frames if "/victor_jax/" in frame.filename] or frames)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {type(error).__name__}"
