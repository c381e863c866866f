"""The convention of the Hugging Face processor, at the edge: ids and pixels -> encoded rows.

Each image is its placeholder token repeated once per feature of the vision tower; pixels are float32, normalised,
[images, 3, size, size] in reading order over the batch.
"""

from typing import Any

import numpy as np

from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE


def encoded_rows(
    input_ids: np.ndarray, attention_mask: np.ndarray | None, config: VLMConfig, tokens_per_image: int
) -> list[EncodedRow]:
    """int [B, T] each, the mask 0 at padding, on either side."""
    ids, mask = _checked(input_ids, attention_mask)
    return [_row(number, ids[number][mask[number]], config, tokens_per_image) for number in range(len(ids))]


def pixels_of_rows(pixel_values: np.ndarray | None, rows: list[EncodedRow], size: int) -> list[np.ndarray | None]:
    """float32 [images, 3, size, size] of each row, None where it has none."""
    counts = [len(row.image_tokens) for row in rows]
    pixels = np.zeros((0, 3, size, size), np.float32) if pixel_values is None else _array("pixel_values", pixel_values)
    given = len(pixels) if pixels.ndim else 0
    if given != sum(counts):
        raise UserError(f"input_ids hold the tokens of {sum(counts)} images, pixel_values has {given}")
    if not given:
        return [None] * len(rows)
    if pixels.shape[1:] != (3, size, size):
        raise UserError(f"pixel_values has shape {pixels.shape}, the vision tower wants [images, 3, {size}, {size}]")
    try:
        pixels = pixels.astype(np.float32, copy=False)
    except (ValueError, TypeError):
        raise UserError(f"pixel_values must be numbers, got {pixels.dtype}") from None
    if not np.isfinite(pixels).all():
        raise UserError("pixel_values holds a number that is not finite in float32: prepare the images again")
    split = np.split(pixels, np.cumsum(counts)[:-1])
    return [of_row if len(of_row) else None for of_row in split]


def _row(number: int, ids: np.ndarray, config: VLMConfig, tokens_per_image: int) -> EncodedRow:
    """Every run of placeholders, which must be a whole number of images, becomes one IMAGE for each."""
    features, vocabulary = config.features_per_image, config.language.vocabulary
    is_image = ids == config.image_token
    if (outside := ids[((ids < 0) | (ids >= vocabulary)) & ~is_image]).size:
        raise UserError(f"row {number} of input_ids has the token {outside[0]}, the model knows 0 to {vocabulary - 1}")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_image, [False]])))
    for run in edges[1::2] - edges[::2]:
        if run % features:
            raise UserError(
                f"row {number} of input_ids has {run} image tokens in a row, but the vision tower gives {features} per "
                f"image: repeat the image token {features} times for each image"
            )
    begins = is_image & ((np.cumsum(is_image) - 1) % features == 0)
    ids = np.where(is_image, IMAGE, ids)[~is_image | begins].astype(np.int32)
    return EncodedRow(ids, np.full_like(ids, IGNORE), (tokens_per_image,) * int(begins.sum()))


def _checked(input_ids: np.ndarray, attention_mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and a bool mask [B, T], or one error."""
    ids = _array("input_ids", input_ids)
    if ids.ndim != 2 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"input_ids must be whole numbers [rows, length], got {ids.dtype} {ids.shape}")
    mask = np.ones_like(ids) if attention_mask is None else _array("attention_mask", attention_mask)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask has shape {mask.shape}, input_ids {ids.shape}: they must be equal")
    mask = mask.astype(bool)
    if empty := np.flatnonzero(~mask.any(axis=1)).tolist():
        raise UserError(f"attention_mask leaves nothing of row {empty[0]}: give it at least one token")
    return ids, mask


def _array(name: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError:
        raise UserError(f"{name} has rows of several lengths: pad them, and say where in attention_mask") from None
