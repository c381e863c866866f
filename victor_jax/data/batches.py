"""Examples -> a batch of one static shape, and the source of the batches of each step."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, round_up
from victor_jax.data.images import Aspect, BadImage, ImageSource, preprocess
from victor_jax.data.index import Bad, Reader
from victor_jax.data.labels import IGNORE, IMAGE, Example
from victor_jax.data.records import BadRow
from victor_jax.data.schedule import FILLER, Schedule
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sequence import Batch, Sequence


def build_batch(
    examples: Rows[Example | None],  # None: a filler
    pixels: Rows[np.ndarray | None],  # of each example, uint8 [its images, 3, size, size]
    shape: Shape,
    tokens_per_image: int,
    registers: int,
    image_size: int,
) -> Batch:
    """Each image becomes its visual tokens and registers; rows stand at the left, padding at the right.

    Targets are shifted: a position carries the id that follows it, and so the last position of an image carries the
    first word after it if that is to be learnt.
    """
    length = round_up(shape.text + shape.images * (tokens_per_image + registers), LENGTH_MULTIPLE)
    kinds, index, targets = np.zeros((3, len(examples), length), np.int32)
    targets[:] = IGNORE
    images = np.zeros((len(examples), shape.images, 3, image_size, image_size), np.uint8)
    for row, (example, of_row) in enumerate(zip(examples, pixels, strict=True)):
        if example is None:
            continue
        row_kinds, row_index, row_labels = lay_out_row(example, tokens_per_image, registers)
        kinds[row, : len(row_kinds)] = row_kinds
        index[row, : len(row_index)] = row_index
        targets[row, : len(row_labels) - 1] = row_labels[1:]
        if of_row is not None and len(of_row):
            images[row, : len(of_row)] = of_row
    positions = np.tile(np.arange(length, dtype=np.int32), (len(examples), 1))
    sequence = Sequence(kinds=kinds, index=index, positions=positions)
    return Batch(sequence, targets, images if shape.images else None)


def lay_out_row(example: Example, tokens_per_image: int, registers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kinds, indices and labels (of the position itself) of one row; see models.sequence for what they mean."""
    is_image = example.input_ids == IMAGE
    copies = np.where(is_image, tokens_per_image + registers, 1)
    source = np.repeat(np.arange(len(copies)), copies)
    within = np.arange(len(source)) - np.repeat(np.cumsum(copies) - copies, copies)
    in_image = is_image[source]
    visual, register = in_image & (within < tokens_per_image), in_image & (within >= tokens_per_image)
    image = np.cumsum(is_image)[source] - 1
    kinds = np.select([visual, register], [Kind.VISUAL, Kind.REGISTER], Kind.TEXT)
    index = np.select(
        [visual, register], [image * tokens_per_image + within, within - tokens_per_image], example.input_ids[source]
    )
    return kinds, index, np.where(in_image, IGNORE, example.targets[source])


class Step(NamedTuple):
    """What one host reads at one step."""

    parts: tuple[Batch, ...]
    rows: np.ndarray  # int64 [parts, rows of each]: records, FILLER where a row holds nothing
    bad: list[Bad]  # records that should have stood here


@dataclass(frozen=True)
class BatchSource:
    """Step -> this host's rows of its batch. Nothing is drawn and nothing is kept, so any step can be read again."""

    reader: Reader
    images: ImageSource
    schedule: Schedule
    registers: int
    image_size: int
    aspect: Aspect
    host: int = 0
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.schedule.batch // self.schedule.parts % self.hosts:
            raise UserError(
                f"batch_size={self.schedule.batch} in {self.schedule.parts} parts does not divide over "
                f"{self.hosts} hosts: choose a multiple of {self.schedule.parts * self.hosts}"
            )

    def __getitem__(self, step: int) -> Step:
        layout, chosen = self.schedule.at(step)
        share = chosen.shape[1] // self.hosts
        rows = chosen[:, self.host * share : (self.host + 1) * share].copy()
        bad: list[Bad] = []
        parts = [self._part(shape, of_part, bad) for shape, of_part in zip(layout.parts, rows, strict=True)]
        return Step(tuple(parts), rows, bad)

    def _part(self, shape: Shape, rows: np.ndarray, bad: list[Bad]) -> Batch:
        """Bad rows become fillers, in `rows` too."""
        examples: list[Example | None] = [None] * len(rows)
        pixels: list[np.ndarray | None] = [None] * len(rows)
        for at, row in enumerate(rows.tolist()):
            if row == FILLER:
                continue
            try:
                example = self.reader[row]
                self._check_fits(example, shape, row)
                pixels[at] = read_images(self.images, example.images, row, self.image_size, self.aspect)
                examples[at] = example
            except BadRow as error:
                bad.append((row, error.reason))
                rows[at] = FILLER
        return build_batch(examples, pixels, shape, self.reader.tokens_per_image, self.registers, self.image_size)

    def __len__(self) -> int:
        return 1 << 40  # any step: what comes after an epoch is the next one

    def _check_fits(self, example: Example, shape: Shape, row: int) -> None:
        images = len(example.images)
        if len(example.input_ids) - images > shape.text or images > shape.images:
            raise UserError(
                f"{self.reader.records.describe(row)} is longer than when the data was indexed: start again, "
                "so that it is indexed anew"
            )


def read_images(source: ImageSource, paths: tuple[str, ...], row: int, size: int, aspect: Aspect) -> np.ndarray | None:
    """uint8 [images, 3, size, size], or None; BadRow where one cannot be read."""
    try:
        read = [preprocess(source.open(path), size, aspect) for path in paths]
    except BadImage as error:
        raise BadRow(row, str(error)) from None
    return np.stack(read) if read else None
