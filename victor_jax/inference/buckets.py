"""Which rows are answered together: few compiled programs, little padding, questions about a picture side by side.

A pure function of the encoded rows, so that a run that was stopped finds the same batches again.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from victor_jax.compression.plan import LENGTH_MULTIPLE, round_up
from victor_jax.data.shapes import Shape, choose_stretches
from victor_jax.limits import check_whole
from victor_jax.models.sequence import EncodedRow

Found = TypeVar("Found")


@dataclass(frozen=True)
class Bucketed:
    """The rows of one batch. Batches of equal `size`, `shape` and `pictures` run the same programs."""

    rows: tuple[int, ...]  # which ones; at most `size`
    size: int  # rows of the program, fillers among them
    shape: Shape  # that holds every row
    pictures: int | None  # places for so many different ones; None: for each one of each row

    @property
    def filled(self) -> list[int]:
        """With copies of the last row as fillers. (Not empty rows: decoding goes on until every row has ended.)"""
        return [*self.rows, *self.rows[-1:] * (self.size - len(self.rows))]


def room_for(rows: Rows[EncodedRow]) -> Shape:
    """What holds every row, its text rounded up, so that prompts of all lengths share a handful of programs."""
    visual = max(sum(row.image_tokens) for row in rows)
    return Shape(max(map(_text_room, rows)), max(len(row.image_tokens) for row in rows), visual)


def in_buckets(rows: Rows[EncodedRow], size: int, registers: int, share: bool) -> list[Bucketed]:
    """Batches of `size` rows (of all, where there are fewer), by images and length. The largest come first: what does
    not fit into memory shows at once. `share`: where at most half of a batch's pictures differ, each is seen once."""
    check_whole("batch_size", size)
    if not rows:
        return []
    size, seen = min(size, len(rows)), dict[Any, int]()

    def place(row: int) -> tuple[int, int, int]:
        encoded = rows[row]
        first = seen.setdefault(picture_key(encoded.images[0]), row) if encoded.images else row
        return len(encoded.image_tokens), _text_room(encoded), first

    order = sorted(range(len(rows)), key=place)
    fillers = -len(order) % size  # in the batch of the smallest rows
    batches = [tuple(order[max(start, 0) : start + size]) for start in range(-fillers, len(order), size)]
    filled = [rows[row] for row in order[:1] * fillers + order]
    lengths = np.array([(_text_room(row), len(row.image_tokens), sum(row.image_tokens)) for row in filled])
    bucketed: list[Bucketed] = []
    for stretch in choose_stretches(lengths, registers, size):
        first = len(bucketed)
        here = batches[first : first + stretch.micro_batches]
        encoded = [[rows[row] for row in batch] for batch in here]
        shape = room_for([row for batch in encoded for row in batch])
        pictures = _places(size * shape.images, max(map(_different, encoded))) if share else None
        bucketed += [Bucketed(batch, size, shape, pictures) for batch in here]
    return bucketed[::-1]


def in_order(count: int, batches: Iterable[Bucketed], found: Iterable[Iterable[Found]]) -> list[Found]:
    """What was found for the rows of each batch -> for each of `count` rows."""
    of_row = {
        row: one
        for batch, of_batch in zip(batches, found, strict=True)
        for row, one in zip(batch.rows, of_batch, strict=True)
    }
    return [of_row[row] for row in range(count)]


def picture_key(picture: Any) -> Any:
    """Equal for what is surely the same picture. (PIL compares pixels.)"""
    return id(picture) if isinstance(picture, Image.Image) else str(picture)


def _text_room(row: EncodedRow) -> int:
    """One of four lengths per doubling, a tenth more than the text on average."""
    length = row.text_length
    return round_up(length, max(LENGTH_MULTIPLE, 1 << max(length.bit_length() - 3, 0)))


def _different(batch: Rows[EncodedRow]) -> int:
    return len({picture_key(picture) for row in batch for picture in row.images})


def _places(all_places: int, different: int) -> int | None:
    """The smallest of a half, a quarter, … that holds them; None where nothing is."""
    places = all_places
    while places // 2 >= max(different, 1):
        places //= 2
    return places if places < all_places else None
