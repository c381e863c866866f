"""The few static shapes that batches come in.

A batch has one or more parts of equally many rows; all rows of a part have one length. A compiled program serves one
layout: the lengths of the parts, short to long. With one part, eight programs know eight lengths, and on rows as
different as those of mix665k (50 to 2048 tokens) a fifth of the text positions would be padding; with four parts
they know thirty-two.

Rows are sorted by length and the layouts take them in whole batches, by dynamic programming over where each begins.
So every batch is full but for a few fillers among the shortest rows.
"""

from dataclasses import dataclass

import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, Plan, round_up
from victor_jax.errors import UserError

CANDIDATES = 256  # places where a layout may begin, of one number of images
ENOUGH = 0.05  # share of padding below which one more program is not worth its compile
IMPOSSIBLE = 1 << 60


@dataclass(frozen=True)
class Shape:
    """Of all rows of one part."""

    text: int  # text positions
    images: int  # image places, each with its visual tokens and registers


@dataclass(frozen=True)
class Layout:
    """One compiled program, and its share of an epoch."""

    parts: tuple[Shape, ...]  # with as many images, from the shortest text to the longest
    batches: int  # per epoch
    text: int  # text positions that the rows of those batches fill

    def padding_share(self, batch: int) -> float:
        """Of the text positions that are computed, those that hold nothing."""
        return 1 - self.text / self.computed(batch)

    def computed(self, batch: int) -> int:
        return self.batches * (batch // len(self.parts)) * sum(part.text for part in self.parts)


def shape_lengths(shape: Shape, plan: Plan, tokens_per_image: int, registers: int) -> tuple[int, ...]:
    """The static length of each stage, for any row of this shape."""
    counts = (shape.text, shape.images * tokens_per_image, shape.images * registers)
    kinds = np.repeat(np.array([Kind.TEXT, Kind.VISUAL, Kind.REGISTER], np.int32), counts)
    row = np.zeros((1, round_up(len(kinds), LENGTH_MULTIPLE)), np.int32)
    row[0, : len(kinds)] = kinds
    return plan.lengths(row)


def choose_layouts(
    text_lengths: np.ndarray,  # int [n], of rows that can be used
    image_counts: np.ndarray,  # int [n]
    positions_per_image: int,  # visual tokens and registers
    batch: int,
    parts: int = 1,
    at_most: int = 8,
    enough: float = ENOUGH,
) -> tuple[Layout, ...]:
    """The fewest layouts whose padding is below `enough`, else `at_most` of them with the least padding.

    Rows with and without images never share a batch. Rows of different image counts do where layouts are too few
    for each to have its own; then the image places left empty are padding too. Ordered by images, then text.
    """
    counts = np.unique(image_counts)
    if not len(counts):
        raise UserError("no row of the data can be used")
    if at_most < (needed := int(counts[0] == 0) + int(counts[-1] > 0)):
        raise UserError(f"{at_most} programs are too few: rows with and without images need {needed}")
    # best[c][k]: the least padding of rows with counts[:c] in k layouts, and the layouts.
    best: list[dict[int, tuple[int, tuple[Layout, ...]]]] = [{0: (0, ())}]
    for end, images in enumerate(counts.tolist()):
        found: dict[int, tuple[int, tuple[Layout, ...]]] = {}
        for start in range(1 if end and counts[0] == 0 else 0, end + 1):
            here = (image_counts >= counts[start]) & (image_counts <= images)
            spare = int((images - image_counts[here].astype(np.int64)).sum()) * positions_per_image
            ways = _split(text_lengths[here], images, positions_per_image, batch, parts, at_most)
            for number, (cost, layouts) in ways.items():
                for before, (cost_before, layouts_before) in best[start].items():
                    total, way = before + number, (cost_before + spare + cost, layouts_before + layouts)
                    if total <= at_most and (total not in found or way[0] < found[total][0]):
                        found[total] = way
        best.append(found)
    useful = int(text_lengths.sum(dtype=np.int64))
    ways = best[-1]
    for number in sorted(ways):
        if ways[number][0] <= enough * (ways[number][0] + useful):
            return ways[number][1]
    return ways[min(ways, key=lambda number: (ways[number][0], number))][1]


def by_length(text_lengths: np.ndarray, batch: int) -> np.ndarray:
    """Lengths in order, with fillers (0) in front up to whole batches."""
    return np.concatenate([np.zeros(-len(text_lengths) % batch, np.int64), np.sort(text_lengths)])


def _split(
    text_lengths: np.ndarray, images: int, positions_per_image: int, batch: int, parts: int, at_most: int
) -> dict[int, tuple[int, tuple[Layout, ...]]]:
    """Number of layouts -> the least padding for rows of one number of image places, and the layouts."""
    lengths = by_length(text_lengths, batch)
    batches, share = len(lengths) // batch, batch // parts
    # Text that fills the row up to the multiple, images and all.
    offset = -images * positions_per_image % LENGTH_MULTIPLE
    longest = np.maximum(lengths[share - 1 :: share], 1)
    room = -(-(longest - offset) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE + offset  # of the n-th `share` of rows
    filled = np.concatenate([[0], np.cumsum(lengths)])[::batch]
    starts = np.unique(np.append(np.arange(0, batches, -(-batches // CANDIDATES)), batches))
    # waste[i, j]: one layout for the batches starts[i] up to starts[j].
    first, last = np.meshgrid(starts, starts, indexing="ij")
    size = np.maximum(last - first, 0)
    computed = np.zeros_like(size)
    for part in range(parts):
        computed += room[np.maximum(first * parts + size * (part + 1) - 1, 0).clip(max=len(room) - 1)] * size * share
    waste = np.where(size > 0, computed - (filled[last] - filled[first]), IMPOSSIBLE)
    cost, chosen = waste[0], [np.zeros(len(starts), np.int64)]
    ways = {}
    for number in range(1, min(at_most, len(starts) - 1) + 1):
        if number > 1:
            through = cost[:, None] + waste
            chosen.append(through.argmin(axis=0))
            cost = np.minimum(through.min(axis=0), IMPOSSIBLE)
        at, layouts = len(starts) - 1, []
        for previous in reversed(chosen):
            begin, end = int(starts[previous[at]]), int(starts[at])
            rooms = [int(room[begin * parts + (end - begin) * (part + 1) - 1]) for part in range(parts)]
            shapes = tuple(Shape(text, images) for text in rooms)
            layouts.append(Layout(shapes, end - begin, int(filled[end] - filled[begin])))
            at = int(previous[at])
        ways[number] = int(cost[-1]), tuple(reversed(layouts))
    return ways
