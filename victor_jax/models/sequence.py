"""What each position of a batch is, and its RoPE position. Made on the host, before anything is compiled.

Rows are closed up to the left, so padding is at the right end. Several images with token counts of their own, text
on both sides of them and text-only rows are the same mechanism.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import flax.struct
import numpy as np

from victor_jax.compression.plan import Counts, Kind, length_of
from victor_jax.ops.losses import IGNORE

IMAGE = -200  # among the ids of an encoded row: one image, whatever the number of its tokens

IntArray = Any  # numpy on the host, jax.Array inside a program, a ShapeDtypeStruct when only traced


@dataclass(frozen=True)
class EncodedRow:
    """A record or a prompt as the model reads it."""

    ids: np.ndarray  # int32 [T]: token ids, IMAGE once for each image
    targets: np.ndarray  # int32 [T]: the id itself where it is supervised, IGNORE elsewhere; not shifted
    image_tokens: tuple[int, ...] = ()  # visual tokens of each image
    images: tuple[Any, ...] = ()  # paths or pictures, not read yet

    @property
    def text_length(self) -> int:
        return len(self.ids) - len(self.image_tokens)


@flax.struct.dataclass
class Sequence:
    kinds: IntArray  # int32 [B, T]: Kind
    index: IntArray  # int32 [B, T]: which one of its kind: token id, visual token of the row, register
    positions: IntArray  # int32 [B, T]: RoPE position, counted along the row
    prompt_end: IntArray  # int32 [B]: the position that predicts the first supervised token, or the last one of a row


@flax.struct.dataclass
class Batch:
    """What every program reads, in training, scoring and generating. Rows are independent; a filler is all padding."""

    sequence: Sequence
    targets: IntArray  # int32 [B, T]: the id that each position must predict, IGNORE elsewhere
    # [B, images per row, 3, size, size]: uint8, normalised inside the program, or float32 that is normalised already;
    # rows with fewer images are filled up. None: text only.
    pixels: Any
    # int32 [B, images per row]: which of pixels [pictures, 3, size, size] each one is, where rows share pictures.
    pictures: Any = None


def kind_counts(rows: Rows[EncodedRow | None], registers: int | np.ndarray) -> Counts:
    """int [B, kinds], with so many registers after each image: one number, or one for each row."""
    counts = np.zeros((len(rows), len(Kind)), np.int64)
    registers = np.broadcast_to(registers, len(rows))
    for row, encoded in enumerate(rows):
        if encoded is not None:
            images = len(encoded.image_tokens)
            counts[row, Kind.TEXT] = encoded.text_length
            counts[row, Kind.VISUAL] = sum(encoded.image_tokens)
            counts[row, Kind.REGISTER] = images * registers[row]
    return counts


def lay_out(
    rows: Rows[EncodedRow | None],  # None: a filler
    registers: int | np.ndarray,  # after each image: one number, or one for each row
    length: int | None = None,  # by default what the longest row needs
    given: int | None = None,  # visual tokens that the tower gives for each image; by default those of the rows
) -> tuple[Sequence, np.ndarray]:
    """Each image becomes its visual tokens and then registers -> the sequence, and its targets int32 [B, T].

    Targets are shifted: a position carries the id that follows it, and so the last position of an image carries the
    first word after it if that is supervised. A row that has fewer visual tokens of an image than the tower gives
    reads the first ones.
    """
    length = length or length_of(kind_counts(rows, registers))
    kinds, index, targets = np.zeros((3, len(rows), length), np.int32)
    targets[:] = IGNORE
    prompt_end = np.zeros(len(rows), np.int32)
    registers = np.broadcast_to(registers, len(rows))
    for row, encoded in enumerate(rows):
        if encoded is None:
            continue
        row_kinds, row_index, row_targets = _row(encoded, int(registers[row]), given)
        kinds[row, : len(row_kinds)] = row_kinds
        index[row, : len(row_index)] = row_index
        targets[row, : len(row_targets) - 1] = row_targets[1:]
        supervised = np.flatnonzero(targets[row] != IGNORE)
        prompt_end[row] = supervised[0] if len(supervised) else len(row_kinds) - 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    return Sequence(kinds, index, positions, prompt_end), targets


def _row(encoded: EncodedRow, registers: int, given: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kinds, indices and targets, position by position."""
    is_image = encoded.ids == IMAGE
    tokens = np.zeros(len(is_image), np.int64)  # visual tokens at each id
    tokens[is_image] = encoded.image_tokens
    copies = np.where(is_image, tokens + registers, 1)
    source = np.repeat(np.arange(len(copies)), copies)
    within = np.arange(len(source)) - np.repeat(np.cumsum(copies) - copies, copies)
    visual = is_image[source] & (within < tokens[source])
    register = is_image[source] & ~visual
    held = tokens if given is None else given * is_image
    before = (np.cumsum(held) - held)[source]  # visual tokens of the images before
    kinds = np.select([visual, register], [Kind.VISUAL, Kind.REGISTER], Kind.TEXT)
    index = np.select([visual, register], [before + within, within - tokens[source]], encoded.ids[source])
    return kinds, index, np.where(is_image[source], IGNORE, encoded.targets[source])
