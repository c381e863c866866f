"""TSV files with pictures in their cells, as MMBench publishes them: base64, or the index of the row that holds it."""

import base64
import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from victor_jax.errors import UserError

# What pandas, and so LLaVA's script, reads as an empty cell; in lower case.
EMPTY = {"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "-nan"}
REFERENCE = 64  # characters: what is not longer is an index (VLMEvalKit's vlmeval/dataset/image_base.py)


class PictureTable:
    """The rows of a file without their pictures, which are read one by one when asked for."""

    def __init__(self, file: Path, *columns: str):
        """`columns`: those that must be there, beside index and image."""
        self.file = file
        self.rows: dict[int, dict[str, str]] = {}  # by index
        self._places: dict[int, tuple[int, int]] = {}  # index -> first byte and end of the row
        self._holders: dict[int, int] = {}  # index -> the row that holds its picture, if another
        rows = self._read()
        _, header = next(rows, ((0, 0), []))
        if lacking := [name for name in ("index", "image", *columns) if name not in header]:
            raise UserError(f"{file} has no column {lacking[0]!r}: give the TSV file as it is published")
        self.columns = tuple(header)
        for number, (place, cells) in enumerate(rows, 1):
            where = f"{file}, row {number},"
            if len(cells) != len(header):
                raise UserError(f"{where} has {len(cells)} cells, expected {len(header)}: is the file cut off?")
            row = dict(zip(header, cells, strict=True))
            index, picture = _index(row["index"], where), row.pop("image")
            if index in self.rows:
                raise UserError(f"{where} has the index {index} of an earlier row")
            if len(picture) <= REFERENCE:
                self._holders[index] = _index(picture, f"{where} column 'image',")
            self.rows[index], self._places[index] = row, place
        if not self.rows:
            raise UserError(f"{file} holds no rows")
        for index, holder in self._holders.items():
            if holder not in self.rows or holder in self._holders:
                raise UserError(f"{file}: row {index} takes its picture from row {holder}, which has none")

    def picture_of(self, index: int) -> str:
        """Its name: the index of the row that holds it."""
        return str(self._holders.get(index, index))

    def picture(self, name: str) -> bytes:
        """An image file's bytes."""
        start, end = self._places[int(name)]
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                (cells,) = csv.reader(io.StringIO(file.read(end - start).decode(), newline=""), delimiter="\t")
            return base64.b64decode(cells[self.columns.index("image")], validate=True)
        except (OSError, ValueError, IndexError, csv.Error) as error:  # not base64, or the file was changed meanwhile
            raise UserError(f"{self.file}: the picture of row {name} cannot be read ({error})") from None

    def _read(self) -> Iterator[tuple[tuple[int, int], list[str]]]:
        """First byte and end of every row, and its cells; a quoted cell may hold line ends."""
        start = end = 0

        def lines(file: Iterable[bytes]) -> Iterator[str]:
            nonlocal end
            for line in file:
                end += len(line)
                yield line.decode()

        csv.field_size_limit(sys.maxsize)  # a picture is longer than the 128 KiB that csv allows
        try:
            with self.file.open("rb") as file:
                for cells in csv.reader(lines(file), delimiter="\t"):
                    if cells:
                        yield (start, end), cells
                    start = end
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _index(text: str, where: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise UserError(f"{where} has {text[:40]!r}: expected the index of a row")
    return int(text)
