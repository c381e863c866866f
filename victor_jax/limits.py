"""Types of settings with their limits, for the declarations of settings: `workers: Count`."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from victor_jax.errors import UserError


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


def check_whole(name: str, value: Any, least: int = 1, most: int = 1_000_000) -> None:
    """Of an argument that a user writes."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name}={shown(value)} must be a whole number from {least:,} to {most:,}")


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], words: str) -> None:
    if not isinstance(value, kinds):
        raise UserError(f"{name}={shown(value)} must be {words}")


def shown(value: Any) -> str:
    """For a message. Python refuses to write numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return f"<{type(value).__name__}>"
