"""Which rows make up which batch: a pure function of (seed, step), the same on every host.

An epoch holds every row once. The rows are sorted by length, rows of equal length at random; each layout takes its
stretch of them, each part of the layout its share of that; within their share rows go to batches at random, and the
batches come in random order. The next epoch is drawn anew.
"""

import hashlib
from typing import Any

import numpy as np

from victor_jax.data.index import Index
from victor_jax.data.shapes import Layout, choose_layouts
from victor_jax.errors import UserError

FILLER = -1  # in place of a row
PROGRAMS = 8


class Schedule:
    def __init__(
        self,
        index: Index,
        batch: int,  # rows, over all hosts and parts
        seed: int,
        registers: int,  # after each image
        parts: int = 1,
        at_most: int = PROGRAMS,
        rows: np.ndarray | None = None,  # int: those that take part; all by default. Bad ones never do
    ):
        if batch % parts:
            raise UserError(f"batch_size={batch} does not divide into {parts} parts of equally many rows")
        takes_part = index.text_lengths > 0
        if rows is not None:
            chosen = np.zeros_like(takes_part)
            chosen[rows] = True
            takes_part &= chosen
        self.batch, self.seed, self.parts = batch, seed, parts
        self._rows = np.flatnonzero(takes_part).astype(np.int32)
        self._lengths, self._images, self._visual = (
            of_all[self._rows] for of_all in (index.text_lengths, index.image_counts, index.visual_lengths)
        )
        self.layouts = choose_layouts(self._lengths, self._images, self._visual, registers, batch, parts, at_most)
        self.steps_per_epoch = sum(layout.batches for layout in self.layouts)
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def padding_share(self) -> float:
        """Of the text positions that an epoch computes, those that hold nothing; fillers are nothing."""
        return 1 - self._lengths.sum(dtype=np.int64) / sum(layout.computed(self.batch) for layout in self.layouts)

    def at(self, step: int) -> tuple[Layout, np.ndarray]:
        """The layout of this step's batch, and its rows int64 [parts, batch / parts], FILLER where there is none."""
        epoch, number = divmod(step, self.steps_per_epoch)
        of_batch, batches = self._order(epoch)
        return self.layouts[of_batch[number]], batches[number].astype(np.int64)

    def digest(self) -> str:
        """Equal where the batches of every step are."""
        whole = hashlib.sha256(repr((self.layouts, self.batch, self.seed)).encode())
        for part in (self._rows, self._lengths, self._images, self._visual):
            whole.update(part.tobytes())
        return whole.hexdigest()[:16]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the batches of an epoch: the layout's number [steps], the rows int32 [steps, parts, batch / parts]."""
        orders = self._orders
        if epoch not in orders:
            # Two at a time: around the end of an epoch, readers ahead are in the next one.
            self._orders = orders = dict([*orders.items()][-1:]) | {epoch: self._draw(epoch)}
        return orders[epoch]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # NumPy keeps the raw bits of a generator the same in every version; it does not promise that of permutation().
        bits = np.random.Philox(key=[self.seed, epoch])
        batches = np.empty((self.steps_per_epoch, self.parts, self.batch // self.parts), np.int32)
        start, fewer = 0, -1
        for images in sorted({layout.parts[0].images for layout in self.layouts}):
            here = np.flatnonzero((self._images > fewer) & (self._images <= images))
            fewer = images
            order = here[np.lexsort((bits.random_raw(len(here)), self._lengths[here]))]
            waiting = np.concatenate([np.full(-len(order) % self.batch, FILLER, np.int32), self._rows[order]])
            for layout in self.layouts:
                if layout.parts[0].images != images:
                    continue
                taken, waiting = np.split(waiting, [layout.batches * self.batch])
                for part, share in enumerate(np.split(taken, self.parts)):
                    shuffled = share[np.argsort(bits.random_raw(len(share)), kind="stable")]
                    batches[start : start + layout.batches, part] = shuffled.reshape(layout.batches, -1)
                start += layout.batches
        of_batch = np.repeat(np.arange(len(self.layouts)), [layout.batches for layout in self.layouts])
        order = np.argsort(bits.random_raw(len(batches)), kind="stable")
        return of_batch[order], batches[order]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}  # drawn again where it is used
