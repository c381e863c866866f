"""Batches in the order of their steps, read ahead by threads or worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import TracebackType

import grain
import numpy as np
from absl import flags

from victor_jax.data.batches import BatchSource, Step
from victor_jax.data.index import Bad, check_bad_rows
from victor_jax.models.sequence import Batch

AHEAD = 2  # batches held ready; grain's own default is 500


class Loader:
    """Iterates over (step, parts of the batch, rows) from start_step up to stop_step.

    The same whatever the number of workers. Use it in a `with`, or call close(): worker processes end there.
    """

    def __init__(
        self,
        source: BatchSource,
        start_step: int,
        stop_step: int,
        workers: int = 0,
        known_bad: list[Bad] | None = None,  # rows that the index has left out
        max_bad_rows: int | None = None,
    ):
        self._source = source
        self._bad = dict(known_bad or [])
        self._most = max_bad_rows
        self._next = start_step
        steps = grain.MapDataset.source(source)[start_step:stop_step]
        if workers:
            if not flags.FLAGS.is_parsed():  # outside of absl's app.run: grain reads flags of its own
                flags.FLAGS.mark_as_parsed()
            ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            # Through pipes: a container's /dev/shm is often smaller than two batches of images.
            pipes = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
            ahead = grain.experimental.WithOptionsIterDataset(ahead, pipes)
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(workers), _begin_worker)
        else:
            ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD))
        self._steps: Iterator[Step] = iter(ahead)

    @property
    def bad_rows(self) -> list[Bad]:
        """Rows that were left out so far, with the reason: those of the index, and those whose image failed here."""
        return sorted(self._bad.items())

    def __iter__(self) -> Iterator[tuple[int, tuple[Batch, ...], np.ndarray]]:
        return self

    def __next__(self) -> tuple[int, tuple[Batch, ...], np.ndarray]:
        _, parts, rows, bad = next(self._steps)
        self._bad |= dict(bad)
        if bad:
            check_bad_rows(self.bad_rows, self._most, self._source.reader.records)
        self._next += 1
        return self._next - 1, parts, rows

    def close(self) -> None:
        self._steps.close()  # type: ignore[attr-defined]

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _begin_worker(worker: int, workers: int) -> None:
    """A worker lives exactly as long as its parent wants it.

    A signal to the whole process group (Ctrl-C, SLURM's and Kubernetes' SIGTERM) must not take the data away while
    the parent is still saving; and if the parent is killed outright, nobody else would end its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
