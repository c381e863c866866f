"""The one property: a call works, as its reference does where there is one, or it is refused in one sentence; within a
bounded time and memory; and what is refused leaves nothing in the output folder."""

import contextlib
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hypothesis import strategies as st

from victor_jax.data.images import BadImage
from victor_jax.data.records import BadRow
from victor_jax.errors import UserError

REFUSALS = (UserError, BadRow, BadImage)  # a bad row or picture is skipped and listed: as good as refused
LONGEST = 2500  # characters of a sentence
HANGS = 60  # seconds of the clock


class Surface:
    """What is tried, and how. `out` in the room is where output goes."""

    name: ClassVar[str]
    short: ClassVar[int]  # inputs of the seeded run
    seconds: ClassVar[float] = 5.0  # of the processor, for `attempt`: those of the clock depend on who else is at work
    megabytes: ClassVar[int] = 500  # of growth while `attempt` runs
    inputs: st.SearchStrategy[Any]

    def prepare(self, given: Any, room: Path) -> Any:
        """Writes what `attempt` reads."""
        return given

    def attempt(self, prepared: Any, room: Path) -> Any:
        raise NotImplementedError

    def compare(self, prepared: Any, result: Any) -> None:
        """With the reference; `result` is that of `attempt`, or the refusal."""


class Tried(NamedTuple):
    refusal: str  # "" where it worked
    seconds: float
    megabytes: float


class HangsError(BaseException):
    """Nothing that catches errors may catch it."""


def tried(surface: Surface, given: Any) -> Tried:
    """Raises whatever contradicts the property."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        room = Path(folder)
        (room / "out").mkdir()
        prepared = surface.prepare(given, room)
        before, started = reset_peak(), time.process_time()
        try:
            with alarm(HANGS):
                result = surface.attempt(prepared, room)
        except REFUSALS as refusal:
            result = refusal
        seconds, megabytes = time.process_time() - started, (memory("VmHWM") - before) / 1e6
        refusal = str(result) if isinstance(result, REFUSALS) else ""
        if refusal:
            left = [path.name for path in (room / "out").iterdir()]
            if left or not is_one_sentence(refusal):
                what = f"refused, but {left} is left behind" if left else f"not one sentence: {refusal!r}"
                raise AssertionError(what) from result
        assert seconds <= surface.seconds, f"took {seconds:.1f} s, at most {surface.seconds} are allowed"
        assert megabytes <= surface.megabytes, f"took {megabytes:.0f} MB, at most {surface.megabytes} are allowed"
        surface.compare(prepared, result)
        return Tried(refusal, seconds, megabytes)


def is_one_sentence(text: str) -> bool:
    """That a terminal shows as it is."""
    return text.isprintable() and 0 < len(text) <= LONGEST


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangsError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reset_peak() -> int:
    """Bytes in memory now, from which the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(kind: str) -> int:
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])
