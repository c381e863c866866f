"""Where each row of a large JSON file stands. One pass in small windows; nothing but byte offsets is kept."""

import array
import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from victor_jax.errors import UserError

CHUNK = 1 << 20  # bytes read at once
MAX_ROW = 1 << 26  # characters: more in one row means a string or a brace that is never closed
EDGE = 12  # an error this close to the end of the window may be a token cut in two, such as \ud83d\ude00
SPACE = " \t\n\r"
BOM = b"\xef\xbb\xbf"

_scan = json.JSONDecoder().raw_decode


def index_rows(path: Path) -> np.ndarray:
    """int64 [rows, 2]: the bytes from..to of every row of a JSON list or, in a .jsonl file, of every line."""
    try:
        with path.open("rb") as file:
            spans = _lines(file, path) if path.suffix == ".jsonl" else _elements(_Window(file, path))
            # An array of machine integers: 665,000 tuples of Python's would be a hundred megabytes.
            bounds = array.array("q", (bound for span in spans for bound in span))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not bounds:
        raise UserError(f"{path} holds no rows")
    return np.frombuffer(bounds, np.int64).reshape(-1, 2)


class _Window:
    """A stretch of the file as text, and the place in it up to which it has been read."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.text, self.at = "", 0
        self.byte = 0  # of the character at `at`
        self.size = 0  # bytes read so far
        self.ended = False
        self.decode = codecs.getincrementaldecoder("utf-8")()
        if file.read(len(BOM)) == BOM:
            self.byte = self.size = len(BOM)
        else:
            file.seek(0)

    def more(self) -> bool:
        """Drops what was read and reads on; False at the end of the file."""
        if self.ended:
            return False
        # As much again as is already held: a large row costs its own size, not its square.
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        pending = len(self.decode.getstate()[0])
        try:
            text = self.decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            byte = self.size - pending + error.start
            raise UserError(f"{self.path} is not UTF-8 text (byte {byte}): save it as UTF-8") from None
        self.size += len(data)
        self.text, self.at = self.text[self.at :] + text, 0
        self.ended = not data
        return not self.ended

    def advance(self, to: int) -> None:
        text = self.text
        self.byte += to - self.at if text.isascii() else len(text[self.at : to].encode())
        self.at = to

    def next(self) -> str:
        """Past white space to the next character, which is returned; empty at the end of the file."""
        while True:
            to = self.at
            while to < len(self.text) and self.text[to] in SPACE:
                to += 1
            self.advance(to)
            if to < len(self.text):
                return self.text[to]
            if not self.more():
                return ""

    def fail(self, message: str, byte: int | None = None) -> UserError:
        byte = self.byte if byte is None else byte
        return UserError(f"{self.path}, line {_line(self.path, byte)} (byte {byte}): {message}")


def _elements(window: _Window) -> Iterator[tuple[int, int]]:
    """Of a JSON list of objects, read whole so that a broken file is found before anything is computed."""
    first = window.next()
    if not first:
        raise UserError(f"{window.path} is empty: expected a JSON list of rows")
    if first != "[":
        raise window.fail(f"expected a JSON list, found {first!r} (one object per line needs the suffix .jsonl)")
    window.advance(window.at + 1)
    if window.next() == "]":
        window.advance(window.at + 1)
    else:
        row = 0
        while True:
            yield _element(window, row)
            row += 1
            match window.next():
                case ",":
                    window.advance(window.at + 1)
                    window.next()
                case "]":
                    window.advance(window.at + 1)
                    break
                case "":
                    raise window.fail(f"the file ends after row {row - 1} and the list is not closed: is it cut off?")
                case other:
                    raise window.fail(f"not JSON: expected ',' or ']' after row {row - 1}, found {other!r}")
    if rest := window.next():
        raise window.fail(f"not JSON: expected the end of the file after the list, found {rest!r}")


def _element(window: _Window, row: int) -> tuple[int, int]:
    start = window.byte
    if window.next() not in ("{", ""):
        raise window.fail(f"row {row} is not an object: expected a list of objects with 'conversations'")
    while True:
        try:
            _, end = _scan(window.text, window.at)
        except json.JSONDecodeError as error:
            open_string = error.msg.startswith("Unterminated string")
            may_be_cut = open_string or error.pos >= len(window.text) - EDGE
            if may_be_cut and not window.ended and len(window.text) - window.at <= MAX_ROW:
                window.more()
                continue
            if window.ended and (open_string or error.pos >= len(window.text.rstrip())):
                raise window.fail(f"the file ends in the middle of row {row}: is it cut off?") from None
            byte = window.byte + len(window.text[window.at : error.pos].encode())
            raise window.fail(f"row {row} is not JSON: {error.msg}", byte) from None
        window.advance(end)
        return start, window.byte


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """One object per line; blank lines are passed over."""
    end = 0
    for number, line in enumerate(file, 1):
        start, end = end, end + len(line)
        if number == 1 and line.startswith(BOM):
            start, line = start + len(BOM), line[len(BOM) :]
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: not UTF-8 text: save it as UTF-8") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not an object: expected one with 'conversations'")
        yield start, end


def _line(path: Path, byte: int) -> int:
    """The number, from 1, of the line that this byte stands in."""
    line = 1
    with path.open("rb") as file:
        while byte > 0 and (data := file.read(min(CHUNK, byte))):
            line += data.count(b"\n")
            byte -= len(data)
    return line
