"""The few static shapes that batches come in.

A batch has one or more parts of equally many rows; all rows of a part have one length. A compiled program serves one
layout: the lengths of the parts, short to long. With one part, eight programs know eight lengths, and on rows as
different as those of mix665k (50 to 2048 tokens) a fifth of the text positions would be padding; with four parts
they know thirty-two.

Rows are sorted by length and the layouts take them in whole batches, by dynamic programming over where each begins.
So every batch is full but for a few fillers among the shortest rows.
"""

from dataclasses import dataclass, replace

import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Counts, Kind
from victor_jax.errors import UserError

CANDIDATES = 256  # places where a layout may begin, of one number of images
ENOUGH = 0.05  # share of padding below which one more program is not worth its compile
IMPOSSIBLE = 1 << 60


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

    parts: tuple[Shape, ...]  # with as many images, from the shortest text to the longest
    batches: int  # per epoch
    text: int  # text positions that the rows of those batches fill

    def padding_share(self, batch: int) -> float:
        """Of the text positions that are computed, those that hold nothing."""
        return 1 - self.text / self.computed(batch)

    def computed(self, batch: int) -> int:
        return self.batches * (batch // len(self.parts)) * sum(part.text for part in self.parts)


def choose_layouts(
    text_lengths: np.ndarray,  # int [n], of rows that can be used
    image_counts: np.ndarray,  # int [n]
    visual_lengths: np.ndarray,  # int [n]
    registers: int,  # after each image
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
            room = Shape(0, images, int(visual_lengths[here].max()))
            held = visual_lengths[here].astype(np.int64) + image_counts[here].astype(np.int64) * registers
            spare = int((room.visual + images * registers - held).sum())
            ways = _split(text_lengths[here], room, registers, batch, parts, at_most)
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
    text_lengths: np.ndarray, room: Shape, registers: int, batch: int, parts: int, at_most: int
) -> dict[int, tuple[int, tuple[Layout, ...]]]:
    """Number of layouts -> the least padding of text in rows with this room for images, and the layouts."""
    lengths = by_length(text_lengths, batch)
    batches, share = len(lengths) // batch, batch // parts
    # Text that fills the row up to the multiple, images and all.
    offset = -(room.visual + room.images * registers) % LENGTH_MULTIPLE
    longest = np.maximum(lengths[share - 1 :: share], 1)
    text = -(-(longest - offset) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE + offset  # of the n-th `share` of rows
    filled = np.concatenate([[0], np.cumsum(lengths)])[::batch]
    starts = np.unique(np.append(np.arange(0, batches, -(-batches // CANDIDATES)), batches))
    # waste[i, j]: one layout for the batches starts[i] up to starts[j].
    first, last = np.meshgrid(starts, starts, indexing="ij")
    size = np.maximum(last - first, 0)
    computed = np.zeros_like(size)
    for part in range(parts):
        computed += text[np.maximum(first * parts + size * (part + 1) - 1, 0).clip(max=len(text) - 1)] * size * share
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
            longest_of = [int(text[begin * parts + (end - begin) * (part + 1) - 1]) for part in range(parts)]
            shapes = tuple(replace(room, text=length) for length in longest_of)
            layouts.append(Layout(shapes, end - begin, int(filled[end] - filled[begin])))
            at = int(previous[at])
        ways[number] = int(cost[-1]), tuple(reversed(layouts))
    return ways
