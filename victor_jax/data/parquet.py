"""Parquet files with image bytes, as Hugging Face's datasets have them: LLaVA-NeXT-Data's columns and FineVision's.

    conversations: list<struct<from, value>>    image: struct<bytes, path>, null in a text-only row
    texts: list<struct<user, assistant>>        images: list<struct<bytes, path>>, shown before the first question

Text and image bytes are read by row group and apart, so a pass over the text reads no image. Rows in order are cheap;
a row at random costs its row group, which is enough for small runs (`victor-jax pack-data` makes packs for others).
"""

import os
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from victor_jax.data.images import BadImage, Records
from victor_jax.data.parquet_file import open_parquet
from victor_jax.data.records import BadRow
from victor_jax.errors import UserError


class _Group(NamedTuple):
    """One row group."""

    file: Path
    modified: int  # ns; so that nothing of an older file is taken from the cache
    number: int
    first: int  # its first row, counted over all files
    first_in_file: int
    text: tuple[str, ...]  # columns without image bytes
    images: tuple[str, ...]  # columns of image bytes


class ParquetFiles(Records):
    """Rows, and their images by name: `5/1` is the second image of row 5."""

    def __init__(self, files: list[Path]):
        self._groups: list[_Group] = []
        self._rows = 0
        for file in map(Path.absolute, files):
            first = self._rows
            with open_parquet(file) as opened:
                columns = _columns(file, opened.schema)
                for number in range(opened.num_row_groups):
                    place = (file, os.stat(file).st_mtime_ns, number, self._rows, self._rows - first)
                    self._groups.append(_Group(*place, *columns))
                    self._rows += opened.metadata.row_group(number).num_rows
        if not self._rows:
            raise UserError(f"{files[0]} holds no rows")

    def __len__(self) -> int:
        return self._rows

    def row(self, index: int) -> dict[str, Any]:
        group = self._group(index)
        try:
            row = _read(group, group.text).slice(index - group.first, 1).to_pylist()[0]
        except RuntimeError as error:
            raise BadRow(index, str(error)) from None
        shown = row.pop("images", None) or [image for image in [row.get("image")] if image]
        if "texts" in row:
            row["conversations"] = _conversations(row.pop("texts") or [], len(shown))
        return {**row, "image": [f"{index}/{number}" for number in range(len(shown))]}

    def describe(self, index: int) -> str:
        group = self._group(index)
        return f"{group.file}, row {index - group.first + group.first_in_file}"

    def read(self, path: str) -> bytes:
        row, number = map(int, path.split("/"))
        group = self._group(row)
        try:
            (images,) = _read(group, group.images).slice(row - group.first, 1).to_pylist()[0].values()
        except RuntimeError as error:
            raise BadImage(path, str(error)) from None
        data = (images if isinstance(images, list) else [images])[number]["bytes"]
        if data is None:
            raise BadImage(path, "its bytes are not in the file, only its path is")
        return data

    def _group(self, row: int) -> _Group:
        return self._groups[bisect_right(self._groups, row, key=lambda group: group.first) - 1]


def _conversations(texts: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    speakers = (("human", "user"), ("gpt", "assistant"))
    turns = [{"from": speaker, "value": pair[key]} for pair in texts for speaker, key in speakers]
    if turns and isinstance(turns[0]["value"], str):
        turns[0]["value"] = "<image>\n" * images + turns[0]["value"]
    return turns


@lru_cache(maxsize=2)  # the text and the images of the rows that are being read
def _read(group: _Group, columns: tuple[str, ...]) -> Any:
    with open_parquet(group.file) as opened:
        try:
            return opened.read_row_group(group.number, list(columns))
        except (OSError, ValueError) as error:  # pyarrow's own are subclasses
            raise RuntimeError(f"row group {group.number} of {group.file} is damaged ({error})") from None


def _columns(file: Path, schema: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The leaf columns of the text, and those of the image bytes."""
    leaves: dict[str, list[str]] = {}  # by column
    for leaf in (schema.column(number) for number in range(len(schema.names))):
        leaves.setdefault(leaf.path.split(".")[0], []).extend([leaf.path] * (leaf.logical_type.type != "NULL"))
    for turns, images in (("conversations", "image"), ("texts", "images")):
        if turns not in leaves:
            continue
        shown = leaves.get(images, [])
        data, paths = ([path for path in shown if path.endswith(end)] for end in (".bytes", ".path"))
        if shown and not (data and paths):
            raise UserError(f"{file}: the column {images!r} must hold structs of 'bytes' and 'path', it has {shown}")
        # The paths say which rows have an image.
        return (*leaves.get("id", []), *leaves[turns], *paths), tuple(data)
    raise UserError(
        f"{file} has the columns {', '.join(sorted(leaves))}: expected 'conversations' and 'image', as in "
        "LLaVA-NeXT-Data, or 'texts' and 'images', as in FineVision"
    )
