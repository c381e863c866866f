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

from victor_jax.data.images import BadImage, ImageSource
from victor_jax.data.records import BadRow, Records
from victor_jax.errors import UserError


class _Group(NamedTuple):
    """One row group."""

    file: Path
    modified: int  # ns; so that nothing of an older file is taken from the cache
    number: int
    first: int  # number of its first row in the whole source
    first_in_file: int
    text: tuple[str, ...]  # columns without image bytes
    images: tuple[str, ...]  # columns of image bytes


def open_files(files: list[Path]) -> tuple[Records, ImageSource]:
    groups: list[_Group] = []
    rows = 0
    for file in files:
        file, first = file.absolute(), rows
        with _opened(file) as opened:
            text, images = _columns(file, opened.schema)
            for number in range(opened.num_row_groups):
                groups.append(_Group(file, os.stat(file).st_mtime_ns, number, rows, rows - first, text, images))
                rows += opened.metadata.row_group(number).num_rows
    if not rows:
        raise UserError(f"{files[0]} holds no rows")
    return ParquetRecords(groups, rows), ParquetImages(groups)


class ParquetRecords:
    def __init__(self, groups: list[_Group], rows: int):
        self._groups, self._rows = groups, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._groups[0].file} has {len(self)} rows, not {index}")
        try:
            row = _row(self._groups, index, "text")
        except RuntimeError as error:
            raise BadRow(index, str(error)) from None
        shown = row.pop("images", None) or [image for image in [row.get("image")] if image]
        if "texts" in row:
            row["conversations"] = _conversations(row.pop("texts") or [], len(shown))
        return {**row, "image": [f"{index}/{number}" for number in range(len(shown))]}

    def describe(self, index: int) -> str:
        group = _group(self._groups, index)
        return f"{group.file}, row {index - group.first + group.first_in_file}"


class ParquetImages(ImageSource):
    """`5/1` is the second image of row 5."""

    def __init__(self, groups: list[_Group]):
        self._groups = groups

    def read(self, path: str) -> bytes:
        row, _, number = path.partition("/")
        try:
            (images,) = _row(self._groups, int(row), "images").values()
            data = (images if isinstance(images, list) else [images])[int(number)]["bytes"]
        except RuntimeError as error:
            raise BadImage(path, str(error)) from None
        if data is None:
            raise BadImage(path, "its bytes are not in the file, only its path is")
        return data


def _conversations(texts: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    speakers = (("human", "user"), ("gpt", "assistant"))
    turns = [{"from": speaker, "value": pair[key]} for pair in texts for speaker, key in speakers]
    if turns and isinstance(turns[0]["value"], str):
        turns[0]["value"] = "<image>\n" * images + turns[0]["value"]
    return turns


def _group(groups: list[_Group], row: int) -> _Group:
    return groups[bisect_right(groups, row, key=lambda group: group.first) - 1]


def _row(groups: list[_Group], row: int, kind: str) -> dict[str, Any]:
    group = _group(groups, row)
    table = _read(group.file, group.modified, group.number, getattr(group, kind))
    return table.slice(row - group.first, 1).to_pylist()[0]


@lru_cache(maxsize=2)  # the text and the images of the rows that are being read
def _read(file: Path, modified: int, number: int, columns: tuple[str, ...]) -> Any:
    with _opened(file) as opened:
        try:
            return opened.read_row_group(number, list(columns))
        except (OSError, ValueError) as error:  # pyarrow's own are subclasses
            raise RuntimeError(f"row group {number} of {file} is damaged ({error}): copy the file again") from None


def _opened(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f'{file} is a parquet file: pip install "victor_jax[data]" to read it') from None
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a parquet file that can be read ({error}): copy it again") from None


def _columns(file: Path, schema: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The leaf columns of the text, and those of the image bytes."""
    leaves = [schema.column(number) for number in range(len(schema.names))]
    for turns, images in (("conversations", "image"), ("texts", "images")):
        text = [leaf.path for leaf in leaves if leaf.path.split(".")[0] in ("id", turns)]
        if not any(path.startswith(f"{turns}.") for path in text):
            continue
        shown = [leaf.path for leaf in leaves if leaf.path.split(".")[0] == images and leaf.logical_type.type != "NULL"]
        data = [path for path in shown if path.endswith(".bytes")]
        paths = [path for path in shown if path.endswith(".path")]  # say which rows have an image
        if bool(shown) != bool(data and paths):
            raise UserError(f"{file}: the column {images!r} must hold structs of 'bytes' and 'path', it has {shown}")
        return (*text, *paths), tuple(data)
    found = sorted({leaf.path.split(".")[0] for leaf in leaves})
    raise UserError(
        f"{file} has the columns {', '.join(found)}: expected 'conversations' and 'image', as in LLaVA-NeXT-Data, or "
        "'texts' and 'images', as in FineVision"
    )
