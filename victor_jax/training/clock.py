"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by name: data, step, checkpoint, eval, compile … What is measured within another counts once."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._total: dict[str, float] = {}
        self._since_lap: dict[str, float] = {}
        self._inner = [0.0]  # seconds measured within each open measure

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            own = seconds - self._inner.pop()
            self._inner[-1] += seconds
            self._total[name] = self._total.get(name, 0.0) + own
            self._since_lap[name] = self._since_lap.get(name, 0.0) + own

    def lap(self) -> dict[str, float]:
        """Seconds of each name since the last lap."""
        lap, self._since_lap = self._since_lap, {}
        return lap

    def shares(self) -> dict[str, float]:
        """Each name's share of the time since the start; `other` is what nobody measured."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self._total.items()}
        return shares | {"other": max(0.0, 1.0 - sum(shares.values()))}
