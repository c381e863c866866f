"""Batches and other work ahead of its use, in threads or worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import grain
from absl import flags

from victor_jax.data.batches import BatchSource, Step
from victor_jax.data.records import Bad, check_bad_rows

AHEAD = 2  # results held ready; grain's own default is 500


def read_ahead(source: grain.MapDataset, workers: int) -> Any:
    """Iterates over `source` in its order. To be closed: worker processes end there."""
    if not workers:
        return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)))
    if not flags.FLAGS.is_parsed():  # outside of absl's app.run: grain reads flags of its own
        flags.FLAGS.mark_as_parsed()
    ahead = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    # Through pipes: a container's /dev/shm is often smaller than two batches of images.
    pipes = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
    ahead = grain.experimental.WithOptionsIterDataset(ahead, pipes)
    return iter(ahead.mp_prefetch(grain.MultiprocessingOptions(workers), _begin_worker))


class Loader(AbstractContextManager):
    """Iterates over the batches from start_step up to stop_step; the same whatever the number of workers."""

    def __init__(
        self,
        source: BatchSource,
        start_step: int,
        stop_step: int,
        workers: int = 0,
        known_bad: list[Bad] | None = None,  # rows that the index has left out
        max_bad_rows: int | None = None,
    ):
        self._records, self._most = source.reader.records, max_bad_rows
        self._bad = dict(known_bad or [])
        self._steps = read_ahead(grain.MapDataset.source(source)[start_step:stop_step], workers)

    @property
    def bad_rows(self) -> list[Bad]:
        """Rows that were left out so far, with the reason: those of the index, and those whose image failed here."""
        return sorted(self._bad.items())

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = next(self._steps)
        if step.bad:
            self._bad |= dict(step.bad)
            check_bad_rows(self.bad_rows, self._most, self._records)
        return step

    def __exit__(self, *error: Any) -> None:
        self._steps.close()


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
