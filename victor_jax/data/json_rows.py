"""Rows of a JSON list or JSONL file too large for memory: one pass finds where each is; it is parsed when asked for."""

import array
import codecs
import json
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from victor_jax.errors import UserError

CHUNK = 1 << 20  # bytes read at once
MAX_ROW = 1 << 26  # bytes: a row beyond this is a string or a brace that is never closed
BOM = b"\xef\xbb\xbf"

_parse = json.JSONDecoder().raw_decode
_spaces = re.compile(r"[ \t\r\n]*")


class JsonRecords:
    """The rows of one file, parsed when they are asked for."""

    def __init__(self, path: Path):
        self.path = path.absolute()  # other processes may have another working directory
        self._bounds = index_rows(self.path)
        self._stamp = _stamp(os.stat(self.path))
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, not {index}")
        start, end = (int(bound) for bound in self._bounds[index])
        # pread moves no shared position (threads) and maps no pages (memory).
        return json.loads(os.pread(self._descriptor(), end - start, start))

    def describe(self, index: int) -> str:
        return f"{self.path}, row {index} (byte {self._bounds[index, 0]})"

    def _descriptor(self) -> int:
        if self._file is None:
            file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, file)
            if _stamp(os.fstat(file)) != self._stamp:
                raise UserError(f"{self.path} was changed while it was in use: start again")
            self._file = file
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # opened again where it is used


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def index_rows(path: Path) -> np.ndarray:
    """int64 [rows, 2]: first byte and end of every row of a JSON list or, in a .jsonl file, of every object.

    The file is read to its end, so that a broken one is an error before anything is computed.
    """
    try:
        with path.open("rb") as file:
            window = _Window(file, path)
            spans = _objects(window) if path.suffix == ".jsonl" else _elements(window)
            # An array of machine integers: 665,000 tuples of Python's would take a hundred megabytes.
            bounds = array.array("q", (bound for span in spans for bound in span))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not bounds:
        raise UserError(f"{path} holds no rows")
    return np.frombuffer(bounds, np.int64).reshape(-1, 2)


class _Window:
    """The part of a file around the row that is being parsed.

    Decoded as Latin-1: JSON's syntax is ASCII, and one character per byte makes positions in the text file offsets.
    That the file is UTF-8 is checked beside it.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.text, self.at = "", 0
        self.start = len(BOM) if file.read(len(BOM)) == BOM else 0  # file offset of text[0]
        self.ended = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        file.seek(self.start)

    @property
    def offset(self) -> int:
        return self.start + self.at

    def more(self) -> None:
        """Drops what was parsed and reads on: as much again as is held, so a large row is not parsed too often."""
        read = self.start + len(self.text)
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        pending = len(self._utf8.getstate()[0])
        try:
            self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self.error("not UTF-8 text: save it as UTF-8", read - pending + error.start) from None
        self.text, self.start, self.at = self.text[self.at :] + data.decode("latin-1"), self.offset, 0
        self.ended = not data

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            self.at = _spaces.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def row(self, number: int) -> tuple[int, int]:
        """Passes over one object: its first byte and end."""
        if self.peek() not in ("{", ""):
            raise self.error(f"row {number} is not an object: expected one with 'conversations'")
        first = self.offset
        while True:
            try:
                _, self.at = _parse(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self.ended and len(self.text) - self.at <= MAX_ROW:
                    self.more()  # the row may go on there
                    continue
                is_cut = error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated string")
                if self.ended and is_cut:
                    raise self.error(f"the file ends in the middle of row {number}: is it cut off?") from None
                raise self.error(f"row {number} is not JSON: {error.msg}", self.start + error.pos) from None
            except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
                raise self.error(f"row {number} cannot be parsed: {error}") from None
            return first, self.offset

    def error(self, message: str, offset: int | None = None) -> UserError:
        offset = self.offset if offset is None else offset
        line, left = 1, offset
        with self.path.open("rb") as file:
            while data := file.read(min(CHUNK, left)):
                line, left = line + data.count(b"\n"), left - len(data)
        return UserError(f"{self.path}, line {line} (byte {offset}): {message}")


def _elements(window: _Window) -> Iterator[tuple[int, int]]:
    first = window.peek()
    if not first:
        raise UserError(f"{window.path} is empty: expected a JSON list of rows")
    if first != "[":
        raise window.error(f"expected a JSON list, found {first!r} (one object per line needs the suffix .jsonl)")
    window.at += 1
    number, mark = 0, window.peek()
    while mark != "]":
        yield window.row(number)
        mark = window.peek()
        if not mark:
            raise window.error(f"the file ends after row {number} and the list is not closed: is it cut off?")
        if mark not in ",]":
            raise window.error(f"not JSON: expected ',' or ']' after row {number}, found {mark!r}")
        window.at += mark == ","
        number += 1
    window.at += 1
    if rest := window.peek():
        raise window.error(f"not JSON: expected the end of the file after the list, found {rest!r}")


def _objects(window: _Window) -> Iterator[tuple[int, int]]:
    number = 0
    while window.peek():
        yield window.row(number)
        number += 1
