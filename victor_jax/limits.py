"""Types of settings with their limits, for the declarations of settings: `workers: Count`."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple


class Limit(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


POSITIVE = Limit("above 0", lambda value: value > 0)
NOT_NEGATIVE = Limit("at least 0", lambda value: value >= 0)
Positive = Annotated[int, POSITIVE]
Count = Annotated[int, NOT_NEGATIVE]
Number = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, Limit("from 0 to below 1", lambda value: 0 <= value < 1)]
Devices = Annotated[int, Limit("a number of devices, or -1 for the rest", lambda value: value > 0 or value == -1)]
