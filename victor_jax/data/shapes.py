"""The few static shapes that rows are padded to.

All rows of a micro-batch have one shape, and a compiled program serves one shape. Rows are sorted and cut into
micro-batches; neighbouring micro-batches form a stretch, which shares the smallest shape that fits all of its rows.
More stretches mean less padding and more compiles: the cuts are those with the least of both together, found by dynamic
programming. So long epochs of large data get many shapes, and a smoke test gets one or two.
"""

from dataclasses import dataclass

import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Counts, Kind

CUTS = 64  # places where a stretch may begin, among rows with images and among rows without
COMPILE = 16  # a compile takes as long as this many micro-batches do, about


@dataclass(frozen=True)
class Shape:
    """What every row of a micro-batch has room for."""

    text: int
    images: int
    visual: int  # visual tokens of all images

    def counts(self, registers: int) -> Counts:
        """int [1, kinds], of a row that fills it, with so many registers after each image."""
        counts = np.zeros((1, len(Kind)), np.int64)
        counts[0, [Kind.TEXT, Kind.VISUAL, Kind.REGISTER]] = self.text, self.visual, self.images * registers
        return counts


@dataclass(frozen=True)
class Stretch:
    """One compiled program, and its share of an epoch."""

    shape: Shape
    micro_batches: int  # per epoch
    text: int  # text positions that the rows of those micro-batches fill

    def padding_share(self, rows: int) -> float:
        """Of the text positions that are computed, those that hold nothing. `rows`: of a micro-batch."""
        return 1 - self.text / self.computed(rows)

    def computed(self, rows: int) -> int:
        return self.micro_batches * rows * self.shape.text


def choose_stretches(
    lengths: np.ndarray,  # int [n, 3], whole micro-batches: text, images and visual tokens of each row; ascending
    registers: int,  # after each image
    rows: int,  # of a micro-batch
    compile_cost: float = COMPILE,
) -> list[Stretch]:
    """The stretches with the least padding and compiles, in the rows' order.

    Rows with and without images never share a stretch. Rows of different image counts do where that is cheaper than
    another compile; then the image places left empty are padding too.
    """
    longest = lengths.reshape(-1, rows, 3).max(axis=1)  # of each micro-batch
    total, images = len(longest), longest[:, 1]
    text, held = (
        np.concatenate([[0], np.cumsum(of_rows)])[::rows] for of_rows in (lengths[:, 0], lengths @ [1, registers, 1])
    )
    of_compile = compile_cost * held[-1] / total  # in positions

    def stretch(start: int, end: int) -> tuple[Stretch, int]:
        """And its padding."""
        words, most, visual = longest[start:end].max(axis=0).tolist()
        others = visual + most * registers
        # Text fills the row up to the multiple, images and all.
        room = -(-(max(words, 1) + others) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        padding = (end - start) * rows * room - int(held[end] - held[start])
        return Stretch(Shape(room - others, most, visual), end - start, int(text[end] - text[start])), padding

    text_only = int((images == 0).sum())
    best: dict[int, tuple[float, list[Stretch]]] = {0: (0.0, [])}  # of the micro-batches before each cut
    for first, last in ((0, text_only), (text_only, total)):
        places = np.arange(first, last)
        if len(places) > CUTS:
            places = np.searchsorted(text, np.linspace(text[first], text[last], CUTS + 1)).clip(first, last)
        other_images = first + 1 + np.flatnonzero(np.diff(images[first:last]))
        cuts = np.unique([first, *places, *other_images, last]).tolist()
        for number, end in enumerate(cuts[1:], start=1):
            ways = []
            for start in cuts[:number]:
                cost, before = best[start]
                its, padding = stretch(start, end)
                ways.append((cost + padding + of_compile, [*before, its]))
            best[end] = min(ways, key=lambda way: way[0])
    return best[total][1]
