"""Rows of LLaVA's format: read one by one from a file too large for memory, and checked when they are read."""

import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from victor_jax.data.json_index import index_rows
from victor_jax.errors import UserError

Speaker = Literal["human", "assistant"]
SPEAKERS: dict[str, Speaker] = {"human": "human", "gpt": "assistant"}


class BadRow(Exception):
    """A row that cannot be learnt from. It is skipped, counted and listed: one of 665,000 must not end a run."""

    def __init__(self, index: int, reason: str):
        super().__init__(index, reason)
        self.index, self.reason = index, reason

    def __str__(self) -> str:
        return f"row {self.index}: {self.reason}"


@dataclass(frozen=True)
class Turn:
    speaker: Speaker
    text: str


@dataclass(frozen=True)
class Record:
    index: int
    images: tuple[Any, ...]  # paths as an image source knows them, or pictures; none for a row of text
    turns: tuple[Turn, ...]  # human and assistant by turns, the human first


class Records(Protocol):
    """Rows by number. Pickled for other processes, it carries where the rows stand, never the rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def describe(self, index: int) -> str:
        """File and row, for messages."""
        ...


def open_records(path: str | Path) -> Records:
    """A .json list, a .jsonl file, or a folder that `victor-jax pack-data` has written."""
    path = Path(path)
    if path.is_dir():
        from victor_jax.data.packed import PackedRecords  # needs array_record

        return PackedRecords(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: expected a .json or .jsonl file or a packed folder")
    return JsonRecords(path)


class JsonRecords:
    """The rows of one JSON or JSONL file, parsed when they are asked for."""

    def __init__(self, path: Path):
        # Absolute, since another process may stand in another folder.
        self.path = path.absolute()
        self._bounds = index_rows(self.path)
        self._stamp = _stamp(os.stat(self.path))
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, not {index}")
        start, end = (int(bound) for bound in self._bounds[index])
        # Reading at an offset moves no shared position (threads) and maps no pages (memory).
        return json.loads(os.pread(self._descriptor(), end - start, start))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

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


def parse_record(raw: dict[str, Any], index: int) -> Record:
    """The row as turns that alternate; raises BadRow where LLaVA's own reader would fail or learn nothing."""
    turns = raw.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadRow(index, "it has no 'conversations', a list of turns")
    parsed = [_turn(turn, number, index) for number, turn in enumerate(turns)]
    if parsed[0].speaker != "human":
        parsed = parsed[1:]  # as LLaVA does: an opening word of the assistant has no question
    for number, turn in enumerate(parsed):
        if turn.speaker != ("human", "assistant")[number % 2]:
            raise BadRow(index, f"two turns of the {turn.speaker} follow each other: they must alternate")
    if len(parsed) < 2:
        raise BadRow(index, "it has no answer: expected a turn of 'human' and then one of 'gpt'")
    return Record(index, image_paths(raw, index), tuple(parsed))


def image_paths(raw: dict[str, Any], index: int) -> tuple[str, ...]:
    """`image` is absent, a path, or a list of paths."""
    paths = raw.get("image")
    if paths is None or paths == "":
        return ()
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise BadRow(index, "its 'image' is neither a path nor a list of paths")
    return tuple(paths)


def _turn(turn: Any, number: int, index: int) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow(index, f"turn {number} is not an object with 'from' and 'value'")
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadRow(index, f"turn {number} is from {speaker!r}: expected 'human' or 'gpt'")
    if not isinstance(text, str):
        raise BadRow(index, f"turn {number} has no text in 'value'")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(index, f"turn {number} holds half a character (a lone surrogate)") from None
    return Turn(SPEAKERS[speaker], text)
