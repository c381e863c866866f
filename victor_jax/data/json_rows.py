"""Rows of a JSON list or JSONL file too large for memory: one pass finds where each is; it is parsed when asked for."""

import array
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from victor_jax.data.images import BadImage, ImageFolder, Records
from victor_jax.errors import UserError

CHUNK = 1 << 12  # bytes in which a row is looked for, first; then in twice as many
BUFFER = 1 << 20  # bytes read from disk at once
MAX_ROW = 1 << 26  # bytes: a row beyond this is a string or a brace that is never closed
BOM = b"\xef\xbb\xbf"
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}

_parse = json.JSONDecoder().raw_decode


class JsonRecords(Records):
    """The rows of one file, parsed when they are asked for; their images are files in a folder."""

    def __init__(self, path: Path, images: Path | None):
        self.path = path.absolute()  # other processes may have another working directory
        self._bounds = index_rows(self.path)
        self._stamp = _stamp(os.stat(self.path))
        self._images = ImageFolder(images) if images else None

    def __len__(self) -> int:
        return len(self._bounds)

    def row(self, index: int) -> dict[str, Any]:
        start, end = (int(bound) for bound in self._bounds[index])
        try:
            with self.path.open("rb", buffering=0) as file:
                if _stamp(os.fstat(file.fileno())) != self._stamp:
                    raise UserError(f"{self.path} was changed while it was in use")
                return json.loads(os.pread(file.fileno(), end - start, start))
        except OSError as error:
            raise UserError(f"{self.path} cannot be read any more: {error.strerror}") from None

    def read(self, image: str) -> bytes:
        if self._images is None:
            raise BadImage(image, "no image folder is set")
        return self._images.read(image)

    def describe(self, index: int) -> str:
        return f"{self.path}, row {index} (byte {self._bounds[index, 0]})"


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def index_rows(path: Path) -> np.ndarray:
    """int64 [rows, 2]: first byte and end of every row of a JSON list or, in a .jsonl file, of every object.

    The file is read to its end, so that a broken one is an error before anything is computed.
    """
    try:
        with path.open("rb", buffering=BUFFER) as file:
            reader = _Reader(file, path)
            spans = _objects(reader) if path.suffix == ".jsonl" else _elements(reader)
            # An array of machine integers: 665,000 tuples of Python's would take a hundred megabytes.
            bounds = array.array("q", (bound for span in spans for bound in span))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not bounds:
        raise UserError(f"{path} holds no rows")
    return np.frombuffer(bounds, np.int64).reshape(-1, 2)


class _Reader:
    """A place in a file, and what comes next there."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        begin = file.read(8)
        self.at = len(BOM) if begin.startswith(BOM) else 0
        for magic, kind in COMPRESSED.items():
            if begin.startswith(magic):
                raise UserError(f"{path} is compressed ({kind}): unpack it")

    def _ahead(self, size: int) -> bytes:
        self.file.seek(self.at)  # within the buffer: nothing is read again
        return self.file.read(size)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while data := self._ahead(CHUNK):
            rest = data.lstrip(b" \t\r\n")
            self.at += len(data) - len(rest)
            if rest:
                return rest[:1].decode("latin-1")
        return ""

    def row(self, number: int) -> tuple[int, int]:
        """Passes over one object: its first byte and end."""
        if (mark := self.peek()) not in ("{", ""):
            if mark in ",]":
                raise self.error(f"not JSON: a comma too many before row {number}, take it off")
            raise self.error(f"row {number} is not an object: expected one with 'conversations'")
        first, size = self.at, CHUNK
        while True:
            data = self._ahead(size)
            # JSON's syntax is ASCII: with one character per byte, positions in the text are those in the file.
            text = data.decode("latin-1")
            try:
                _, length = _parse(text)
                data[:length].decode()
            except json.JSONDecodeError as error:
                ended = len(data) < size
                if not ended and size <= MAX_ROW:
                    size *= 2  # the row may go on there
                    continue
                if ended and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")):
                    raise self.error(f"the file ends in the middle of row {number}: is it cut off?") from None
                raise self.error(f"row {number} is not JSON: {error.msg}", first + error.pos) from None
            except UnicodeDecodeError as error:
                raise self.error("not UTF-8 text: save it as UTF-8", first + error.start) from None
            except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
                raise self.error(f"row {number} cannot be parsed: {error}") from None
            self.at += length
            return first, self.at

    def error(self, message: str, offset: int | None = None) -> UserError:
        left = offset = self.at if offset is None else offset
        line = 1
        self.file.seek(0)
        while data := self.file.read(min(BUFFER, left)):
            line, left = line + data.count(b"\n"), left - len(data)
        return UserError(f"{self.path}, line {line} (byte {offset}): {message}")


def _elements(reader: _Reader) -> Iterator[tuple[int, int]]:
    first = reader.peek()
    if not first:
        raise UserError(f"{reader.path} is empty: expected a JSON list of rows")
    if not first.isascii():
        raise reader.error("not UTF-8 text: save it as UTF-8")
    if first != "[":
        raise reader.error(f"expected a JSON list, found {first!r} (one object per line needs the suffix .jsonl)")
    reader.at += 1
    number, mark = 0, reader.peek()
    while mark != "]":
        yield reader.row(number)
        mark = reader.peek()
        if not mark:
            raise reader.error(f"the file ends after row {number} and the list is not closed: is it cut off?")
        if mark not in ",]":
            raise reader.error(f"not JSON: expected ',' or ']' after row {number}, found {mark!r}")
        reader.at += mark == ","
        number += 1
    reader.at += 1
    if rest := reader.peek():
        raise reader.error(f"not JSON: expected the end of the file after the list, found {rest!r}")


def _objects(reader: _Reader) -> Iterator[tuple[int, int]]:
    number = 0
    while reader.peek():
        yield reader.row(number)
        number += 1
