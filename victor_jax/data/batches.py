"""Encoded rows -> a batch of one static shape, and the source of the batches of each step."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from victor_jax.compression.plan import length_of
from victor_jax.data.images import Aspect, BadImage, Records, preprocess
from victor_jax.data.labels import Reader, checksum
from victor_jax.data.records import Bad, BadRow
from victor_jax.data.schedule import FILLER, Schedule
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sequence import Batch, EncodedRow, lay_out


def build_batch(
    rows: Rows[EncodedRow | None],  # None: a filler
    # Of each row, [its images, 3, size, size]: bytes, or normalised float32. None: the caller adds them.
    pixels: Rows[np.ndarray | None] | None,
    registers: int,
    image_size: int,
    shape: Shape,  # that holds every row
    drawn: Rows[int] | None = None,  # how many of the registers, or of an image's tokens, each row has
) -> Batch:
    """The one way from encoded rows to a batch."""
    length, given = length_of(shape.counts(registers)), None
    if drawn is not None and not registers:
        rows, given = with_fewer_tokens(rows, drawn)
    of_rows = np.array(drawn) if drawn is not None and registers else registers
    sequence, targets = lay_out(rows, of_rows, length, given)
    if not shape.images or pixels is None:
        return Batch(sequence, targets, None)
    dtype = next((of_row.dtype for of_row in pixels if of_row is not None), np.uint8)
    images = np.zeros((len(rows), shape.images, 3, image_size, image_size), dtype)
    for place, of_row in zip(images, pixels, strict=True):
        if of_row is not None:
            place[: len(of_row)] = of_row
    return Batch(sequence, targets, images)


def with_fewer_tokens(rows: Rows[EncodedRow | None], tokens: Rows[int]) -> tuple[list[EncodedRow | None], int | None]:
    """Rows whose images have so many visual tokens each, and how many the tower gives for an image."""
    given = next((row.image_tokens[0] for row in rows if row and row.image_tokens), None)
    fewer = [
        row and replace(row, image_tokens=(count,) * len(row.image_tokens))
        for row, count in zip(rows, tokens, strict=True)
    ]
    return fewer, given


class Step(NamedTuple):
    """The batch of one step."""

    number: int
    shapes: tuple[Shape, ...]  # of each part
    rows: np.ndarray  # int64 [parts, rows of each], over all hosts: records, FILLER where there is none
    parts: tuple[Batch, ...]  # the rows of this host
    bad: list[Bad]  # records of this host that cannot be read: fillers stand in their place


@dataclass(frozen=True)
class BatchSource:
    """Step -> this host's rows of its batch. Nothing is drawn and nothing is kept, so any step can be read again."""

    reader: Reader
    schedule: Schedule
    registers: int
    image_size: int
    aspect: Aspect
    host: int = 0
    hosts: int = 1
    draws: tuple[int, ...] = ()  # see Method

    def __post_init__(self) -> None:
        rows, parts = self.schedule.part_rows, self.schedule.parts
        if rows % self.hosts:
            raise UserError(
                f"batch_size={rows * parts} in {parts} parts does not divide over {self.hosts} hosts: choose a "
                f"multiple of {parts * self.hosts}"
            )

    def __getitem__(self, step: int) -> Step:
        shapes, rows = self.schedule.at(step)
        share = rows.shape[1] // self.hosts
        mine = slice(self.host * share, (self.host + 1) * share)
        here = rows[:, mine]
        bad: list[Bad] = []
        drawn = [of_part and of_part[mine] for of_part in self._drawn(step, rows)]
        parts = [self._part(*of_part, bad) for of_part in zip(shapes, here.tolist(), drawn, strict=True)]
        return Step(step, shapes, rows, tuple(parts), bad)

    def _drawn(self, step: int, rows: np.ndarray) -> list[list[int] | None]:
        """Of each part: one of `draws` for each of its rows, the same on every host; None where nothing is drawn."""
        if not self.draws:
            return [None] * len(rows)
        bits = np.random.Philox(key=[self.schedule.seed, step]).random_raw(rows.shape)
        return np.array(self.draws)[bits % np.uint64(len(self.draws))].tolist()

    def _part(self, shape: Shape, rows: list[int], drawn: list[int] | None, bad: list[Bad]) -> Batch:
        encoded: list[EncodedRow | None] = []
        pixels: list[np.ndarray | None] = []
        for row in rows:
            one, of_row = None, None
            try:
                if row != FILLER:
                    one = self._read(row)
                    of_row = read_images(self.reader.records, one.images, row, self.image_size, self.aspect)
            except BadRow as error:
                bad.append((row, error.reason))
                one = None
            encoded.append(one)
            pixels.append(of_row)
        return build_batch(encoded, pixels, self.registers, self.image_size, shape, drawn)

    def _read(self, row: int) -> EncodedRow:
        """The words that were indexed, and no others: schedule and digest of the run rest on them."""
        encoded = self.reader[row]
        if checksum(encoded) != self.schedule.checksums[row]:
            where = self.reader.records.describe(row)
            raise UserError(f"{where} holds other words than at the start: the data was changed while it was in use")
        return encoded

    def __len__(self) -> int:
        return 1 << 40  # any step: what comes after an epoch is the next one


def read_images(records: Records, paths: tuple[str, ...], row: int, size: int, aspect: Aspect) -> np.ndarray | None:
    """uint8 [images, 3, size, size], or None; BadRow where one cannot be read."""
    try:
        read = [preprocess(records.open(path), size, aspect) for path in paths]
    except BadImage as error:
        raise BadRow(row, str(error)) from None
    return np.stack(read) if read else None
