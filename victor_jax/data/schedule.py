"""Which rows make up which batch: a pure function of (seed, step), the same on every host.

The rows are sorted by their images and lengths. Each layout has its stretch of them, and each part of the layout its
share of that. An epoch holds every row once: in each part, rows go to batches at random, and the batches come in
random order. The next epoch is drawn anew.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from victor_jax.data.records import Bad
from victor_jax.data.shapes import Layout, choose_layouts
from victor_jax.errors import UserError

FILLER = -1  # in place of a row


@dataclass(frozen=True)
class Index:
    text_lengths: np.ndarray  # int32 [n]; 0 for a bad row
    image_counts: np.ndarray  # int32 [n]
    visual_lengths: np.ndarray  # int32 [n]: visual tokens of all its images
    bad: list[Bad]


class Schedule:
    def __init__(
        self,
        index: Index,
        batch: int,  # rows, over all hosts and parts
        seed: int,
        registers: int,  # after each image
        parts: int = 1,
        rows: np.ndarray | None = None,  # int: those that take part; all by default. Bad ones never do
    ):
        if batch % parts:
            raise UserError(f"batch_size={batch} does not divide into {parts} parts of equally many rows")
        lengths = np.stack([index.text_lengths, index.image_counts, index.visual_lengths], axis=1).astype(np.int64)
        rows = np.arange(len(lengths)) if rows is None else np.sort(rows)
        rows = rows[lengths[rows, 0] > 0]
        if not len(rows):
            raise UserError("no row of the data can be used")
        rows = rows[np.lexsort(lengths[rows, :2].T)]  # by images, then by text
        text_only = int((lengths[rows, 1] == 0).sum())
        whole = [np.append(np.full(-len(some) % batch, FILLER), some) for some in np.split(rows, [text_only])]
        ordered = np.concatenate(whole).astype(np.int32)
        lengths = np.append(lengths, [[0, 0, 0]], axis=0)[ordered]  # the last is that of a filler

        self.batch, self.seed, self.parts = batch, seed, parts
        self.layouts = choose_layouts(lengths, registers, batch, parts)
        self.steps_per_epoch = len(ordered) // batch
        ends = np.cumsum([layout.batches for layout in self.layouts]) * batch
        # Of each layout: int32 [parts, rows of an epoch].
        self._rows = [stretch.reshape(parts, -1) for stretch in np.split(ordered, ends[:-1])]
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # Equal where the batches of every step are.
        known = repr((self.layouts, batch, seed)).encode() + ordered.tobytes() + lengths.tobytes()
        self.digest = hashlib.sha256(known).hexdigest()[:16]

    @property
    def padding_share(self) -> float:
        """Of the text positions that an epoch computes, those that hold nothing; fillers are nothing."""
        computed = sum(layout.computed(self.batch) for layout in self.layouts)
        return 1 - sum(layout.text for layout in self.layouts) / computed

    def at(self, step: int) -> tuple[Layout, np.ndarray]:
        """The layout of this step's batch, and its rows int64 [parts, batch / parts], FILLER where there is none."""
        epoch, number = divmod(step, self.steps_per_epoch)
        orders = self._orders
        if epoch not in orders:
            # Two at a time: around the end of an epoch, readers ahead are in the next one.
            self._orders = orders = dict([*orders.items()][-1:]) | {epoch: self._draw(epoch)}
        of_batch, batches = orders[epoch]
        return self.layouts[of_batch[number]], batches[number].astype(np.int64)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the batches of an epoch: the layout's number [steps], the rows int32 [steps, parts, batch / parts]."""
        # NumPy keeps the raw bits of a generator the same in every version; it does not promise that of permutation().
        bits = np.random.Philox(key=[self.seed, epoch])
        drawn = []
        for rows in self._rows:
            at_random = np.argsort(bits.random_raw(rows.size).reshape(rows.shape), axis=1, kind="stable")
            shuffled = np.take_along_axis(rows, at_random, axis=1)
            drawn.append(shuffled.reshape(self.parts, -1, self.batch // self.parts).swapaxes(0, 1))
        of_batch = np.repeat(np.arange(len(drawn)), [len(batches) for batches in drawn])
        order = np.argsort(bits.random_raw(len(of_batch)), kind="stable")
        return of_batch[order], np.concatenate(drawn)[order]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}  # drawn again where it is used
