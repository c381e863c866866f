"""Which rows make up which batch: a pure function of (seed, step), the same on every host.

A batch is made of micro-batches, its parts. Rows are sorted by their images and lengths and cut into stretches of one
shape each. An epoch holds every row once: rows are shuffled within their stretch, the micro-batches of all stretches
come in random order, and each step takes the next ones. The next epoch is drawn anew.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from victor_jax.data.records import Bad
from victor_jax.data.shapes import Shape, choose_stretches
from victor_jax.errors import UserError

FILLER = -1  # in place of a row


@dataclass(frozen=True)
class Index:
    text_lengths: np.ndarray  # int32 [n]; 0 for a bad row
    image_counts: np.ndarray  # int32 [n]
    visual_lengths: np.ndarray  # int32 [n]: visual tokens of all its images
    bad: list[Bad]
    checksums: np.ndarray  # uint32 [n]: of each row's ids and targets


class Schedule:
    def __init__(
        self,
        index: Index,
        batch: int,  # rows, over all hosts and parts
        seed: int,
        registers: int,  # after each image
        parts: int = 1,  # of a batch: micro-batches
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
        self.seed, self.parts, self.part_rows = seed, parts, batch // parts
        self.checksums = index.checksums
        text_only = int((lengths[rows, 1] == 0).sum())
        # Fillers are among the shortest rows.
        whole = [np.append(np.full(-len(some) % self.part_rows, FILLER), some) for some in np.split(rows, [text_only])]
        ordered = np.concatenate(whole).astype(np.int32)
        lengths = np.append(lengths, [[0, 0, 0]], axis=0)[ordered]  # the last is that of a filler

        self.stretches = choose_stretches(lengths, registers, self.part_rows)
        self.steps_per_epoch = -(-len(ordered) // batch)
        ends = np.cumsum([stretch.micro_batches for stretch in self.stretches]) * self.part_rows
        self._rows = np.split(ordered, ends[:-1])  # of each stretch
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # Equal where the batches of every step are.
        known = repr((self.stretches, batch, parts, seed)).encode() + ordered.tobytes() + lengths.tobytes()
        known += index.checksums[rows].tobytes()  # the words of the rows, not only how many
        self.digest = hashlib.sha256(known).hexdigest()[:16]

    @property
    def padding_share(self) -> float:
        """Of the text positions that an epoch computes, those that hold nothing; fillers are nothing."""
        computed = sum(stretch.computed(self.part_rows) for stretch in self.stretches)
        return 1 - sum(stretch.text for stretch in self.stretches) / computed

    def at(self, step: int) -> tuple[tuple[Shape, ...], np.ndarray]:
        """The shape of each part of this step's batch, and its rows int64 [parts, rows of each], FILLER where there is
        none. The last batch of an epoch has the parts that are left."""
        epoch, number = divmod(step, self.steps_per_epoch)
        orders = self._orders
        if epoch not in orders:
            # Two at a time: around the end of an epoch, readers ahead are in the next one.
            self._orders = orders = dict([*orders.items()][-1:]) | {epoch: self._draw(epoch)}
        here = slice(number * self.parts, (number + 1) * self.parts)
        of_part, rows = (drawn[here] for drawn in orders[epoch])
        return tuple(self.stretches[stretch].shape for stretch in of_part), rows.astype(np.int64)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the micro-batches of an epoch: the number of its stretch [n], its rows int32 [n, rows of a part]."""
        # NumPy keeps the raw bits of a generator the same in every version; it does not promise that of permutation().
        bits = np.random.Philox(key=[self.seed, epoch])
        shuffled = [rows[np.argsort(bits.random_raw(len(rows)), kind="stable")] for rows in self._rows]
        of_part = np.repeat(np.arange(len(self.stretches)), [stretch.micro_batches for stretch in self.stretches])
        order = np.argsort(bits.random_raw(len(of_part)), kind="stable")
        return of_part[order], np.concatenate(shuffled).reshape(-1, self.part_rows)[order]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}  # drawn again where it is used
