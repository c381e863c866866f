"""What each position of a batch is, and where it stands.

Built on the host from token ids, before anything is compiled. Rows are closed up to the left, so padding stands
at the right end whatever side it came from. Several images, text on both sides of them and text-only rows are
the same mechanism.
"""

from typing import Any

import flax.struct
import numpy as np

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, round_up
from victor_jax.errors import UserError

IntArray = Any  # numpy on the host, jax.Array inside a program, a ShapeDtypeStruct when only traced


@flax.struct.dataclass
class Sequence:
    """Three int32 arrays [B, T]."""

    kinds: IntArray  # Kind
    index: IntArray  # which one of its kind: token id, visual token of the row, register
    positions: IntArray  # RoPE position: the running count of what stands in the row


@flax.struct.dataclass
class Batch:
    """What a training step reads. Rows are independent; a filler row is all padding."""

    sequence: Sequence  # [B, T]
    targets: IntArray  # int32 [B, T]: the id that each position must predict, IGNORE elsewhere
    pixels: Any  # uint8 [B, images per row, 3, size, size], or None


def lay_out(
    input_ids: np.ndarray,  # int [B, T], each image its placeholder repeated once per visual token
    attention_mask: np.ndarray,  # int or bool [B, T], 0 = padding
    *,
    image_token: int,
    tokens_per_image: int,
    registers: int,
) -> Sequence:
    """Token ids in the Hugging Face convention -> the sequence, with `registers` positions after each image."""
    rows = [
        _row(row, ids[mask.astype(bool)], image_token, tokens_per_image, registers)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True))
    ]
    length = round_up(max(len(kinds) for kinds, _ in rows), LENGTH_MULTIPLE)
    kinds, index = np.zeros((2, len(rows), length), np.int32)
    for row, (row_kinds, row_index) in enumerate(rows):
        kinds[row, : len(row_kinds)] = row_kinds
        index[row, : len(row_index)] = row_index
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), kinds.shape)
    return Sequence(kinds=kinds, index=index, positions=positions)


def _row(
    row: int, ids: np.ndarray, image_token: int, tokens_per_image: int, registers: int
) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of one row, without padding -> its kinds and indices."""
    visual = ids == image_token
    _check_images(row, visual, tokens_per_image)
    seen = np.cumsum(visual)  # visual tokens of the row so far
    closes_image = visual & (seen % tokens_per_image == 0)
    copies = 1 + registers * closes_image
    source = np.repeat(np.arange(len(ids)), copies)
    extra = np.arange(len(source)) - np.repeat(np.cumsum(copies) - copies, copies)  # 0 for the token itself
    kinds = np.select([extra > 0, visual[source]], [Kind.REGISTER, Kind.VISUAL], Kind.TEXT)
    index = np.select([extra > 0, visual[source]], [extra - 1, seen[source] - 1], ids[source])
    return kinds, index


def _check_images(row: int, visual: np.ndarray, tokens_per_image: int) -> None:
    """Every run of placeholders must be a whole number of images."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visual, [False]])))
    for run in edges[1::2] - edges[::2]:
        if run % tokens_per_image:
            raise UserError(
                f"row {row} of input_ids has {run} image tokens in a row, but the vision tower gives "
                f"{tokens_per_image} per image: repeat the image token {tokens_per_image} times for each image"
            )


def images_per_row(sequence: Sequence, tokens_per_image: int) -> np.ndarray:
    """int [B]."""
    return (np.asarray(sequence.kinds) == Kind.VISUAL).sum(axis=1) // tokens_per_image


def image_slots(counts: np.ndarray) -> np.ndarray:
    """Images per row [B] -> int32 [B, most images]: which image of the batch, in reading order, fills each slot.

    Unused slots name image 0; nothing in the row points at them.
    """
    most = int(counts.max())
    first = np.cumsum(counts) - counts
    slots = first[:, None] + np.arange(most)[None]
    return np.where(np.arange(most)[None] < counts[:, None], slots, 0).astype(np.int32)
