"""The few static shapes that batches come in.

A batch has one or more parts of equally many rows; all rows of a part have one length. A compiled program serves one
layout: the shapes of the parts, short to long. With one part, eight programs know eight lengths, and on rows as
different as those of mix665k (50 to 2048 tokens) a fifth of the text positions would be padding; with four parts
they know thirty-two.

Rows are sorted and cut into one stretch of whole batches for each layout, by dynamic programming over the cuts. So
every batch is full but for a few fillers among the shortest rows.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Counts, Kind

PROGRAMS = 8
CUTS = 64  # places where a stretch may begin, of rows with images and of rows without
ENOUGH = 0.05  # share of padding below which one more program is not worth its compile


@dataclass(frozen=True)
class Shape:
    """What every row of one part has room for."""

    text: int
    images: int
    visual: int  # visual tokens of all images

    def counts(self, registers: int) -> Counts:
        """int [1, kinds], of a row that fills it, with so many registers after each image."""
        counts = np.zeros((1, len(Kind)), np.int64)
        counts[0, [Kind.TEXT, Kind.VISUAL, Kind.REGISTER]] = self.text, self.visual, self.images * registers
        return counts


@dataclass(frozen=True)
class Layout:
    """One compiled program, and its share of an epoch."""

    parts: tuple[Shape, ...]
    batches: int  # per epoch
    text: int  # text positions that the rows of those batches fill

    def padding_share(self, batch: int) -> float:
        """Of the text positions that are computed, those that hold nothing."""
        return 1 - self.text / self.computed(batch)

    def computed(self, batch: int) -> int:
        return self.batches * (batch // len(self.parts)) * sum(part.text for part in self.parts)


def choose_layouts(
    lengths: np.ndarray,  # int [n, 3], whole batches: text, images and visual tokens of each row; in ascending order
    registers: int,  # after each image
    batch: int,
    parts: int = 1,
    at_most: int = PROGRAMS,
    enough: float = ENOUGH,
) -> list[Layout]:
    """The fewest layouts whose padding is below `enough`, else `at_most` of them with the least; in the rows' order.

    Rows with and without images never share a batch. Rows of different image counts do where layouts are too few
    for each to have its own; then the image places left empty are padding too.
    """
    share, total = batch // parts, len(lengths) // batch
    longest = np.ascontiguousarray(lengths.reshape(-1, share, 3).max(axis=1).T)  # of each `share` of rows
    text, held = (
        np.concatenate([[0], np.cumsum(of_rows)])[::batch] for of_rows in (lengths[:, 0], lengths @ [1, registers, 1])
    )

    def layout_of(start: int, end: int) -> tuple[Layout, int]:
        """And its padding."""
        words, images, visual = longest[:, start * parts : end * parts].reshape(3, parts, -1).max(axis=2)
        others = visual + images * registers
        # Text fills the row up to the multiple, images and all.
        room = -(-(np.maximum(words, 1) + others) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        shapes = tuple(map(Shape, (room - others).tolist(), images.tolist(), visual.tolist()))
        padding = (end - start) * share * int(room.sum()) - int(held[end] - held[start])
        return Layout(shapes, end - start, int(text[end] - text[start])), padding

    images = lengths[batch - 1 :: batch, 1]  # the most in each batch
    text_only = int((images == 0).sum())
    stretches: dict[int, list[tuple[int, Layout, int]]] = {}  # by their end: where one begins, and its padding
    for first, last in ((0, text_only), (text_only, total)):
        places = np.searchsorted(text, np.linspace(text[first], text[last], CUTS + 1)).clip(first, last)
        other_images = first + 1 + np.flatnonzero(np.diff(images[first:last]))
        cuts = np.unique([first, *places, *other_images, last]).tolist()
        for start, end in itertools.combinations(cuts, 2):
            stretches.setdefault(end, []).append((start, *layout_of(start, end)))
    ways = []
    for padding, layouts in _least_padding(stretches, total, at_most):
        ways.append((padding, layouts))
        if padding <= enough * (padding + text[-1]):
            return layouts
    return min(ways, key=lambda way: way[0])[1]


def _least_padding(
    stretches: dict[int, list[tuple[int, Layout, int]]], total: int, at_most: int
) -> Iterator[tuple[int, list[Layout]]]:
    """The least padding of all batches, and its layouts: with one layout, with two …, as far as that many can do it."""
    reached: dict[int, tuple[int, list[Layout]]] = {0: (0, [])}  # of the batches before each cut
    for _ in range(at_most):
        further = {}
        for end, ending in stretches.items():
            if ways := [(reached[at][0] + more, at, layout) for at, layout, more in ending if at in reached]:
                least, at, layout = min(ways, key=lambda way: way[0])
                further[end] = least, [*reached[at][1], layout]
        reached = further
        if total in reached:
            yield reached[total]
