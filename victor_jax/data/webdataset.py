"""WebDataset: tar files in which neighbouring members with one name up to its first dot are one row.

    key.json   a row of LLaVA's format
    key.txt    or a caption, where there is no .json or it is no conversation (img2dataset writes such notes)
    key.jpg, .jpeg, .png, .webp, or key.0.jpg, key.1.jpg …   its images, in the order of their numbers

One pass over the headers finds where everything is; afterwards any row or image is one read.
"""

import array
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from victor_jax.data.images import Records
from victor_jax.data.records import BadRow
from victor_jax.errors import UserError

# In the order of their use.
JSON, TXT, IMAGE = range(3)
KINDS = {".json": JSON, ".txt": TXT, ".jpg": IMAGE, ".jpeg": IMAGE, ".png": IMAGE, ".webp": IMAGE}

Member = tuple[int, int, int, int]  # kind, and the offsets of its header, data and end


class TarFiles(Records):
    """Rows, and their images by name: `5/1` is the second image of row 5."""

    def __init__(self, files: list[Path]):
        self._files = [file.absolute() for file in files]
        # Machine integers: Python's would take gigabytes for millions of members.
        members, ends = array.array("q"), array.array("q")
        self._rows: list[int] = []  # in all files up to each one
        for file in self._files:
            for row in _rows(file):
                members.extend(number for member in row for number in member)
                ends.append(len(members) // 4)
            self._rows.append(len(ends))
        if not ends:
            raise UserError(f"{files[0]} holds no rows: no .json, .txt or image file is in it")
        self._members = np.frombuffer(members, np.int64).reshape(-1, 4)
        self._ends = np.frombuffer(ends, np.int64)  # of each row, among the members

    def __len__(self) -> int:
        return len(self._ends)

    def row(self, index: int) -> dict[str, Any]:
        members = self._of_row(index)
        images = sum(kind == IMAGE for kind, *_ in members)
        row: Any = {}
        for kind, _, start, end in members:
            if kind == IMAGE or "conversations" in row:
                break
            data = self._read(index, start, end)
            try:
                row = json.loads(data.decode()) if kind == JSON else _caption(data.decode(), images)
            except (ValueError, RecursionError) as error:
                raise BadRow(index, f"its {('.json', '.txt')[kind]} cannot be read: {error}") from None
            if not isinstance(row, dict):
                raise BadRow(index, "its .json is not an object with 'conversations'")
        return {**row, "image": [f"{index}/{number}" for number in range(images)]}

    def describe(self, index: int) -> str:
        """With the key, which is read from the tar header: all keys would take too much memory."""
        try:
            with self._file(index).open("rb") as file:
                file.seek(self._of_row(index)[0][1])
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    key = _key(next(iter(archive)))
        except (tarfile.TarError, OSError):  # the file was changed since it was opened
            key = "?"
        return f"{self._file(index)}, row {index} ({key})"

    def read(self, path: str) -> bytes:
        row, number = map(int, path.split("/"))
        _, _, start, end = [member for member in self._of_row(row) if member[0] == IMAGE][number]
        return self._read(row, start, end)

    def _of_row(self, row: int) -> list[Member]:
        return self._members[self._ends[row - 1] if row else 0 : self._ends[row]].tolist()

    def _file(self, row: int) -> Path:
        return self._files[bisect_right(self._rows, row)]

    def _read(self, row: int, start: int, end: int) -> bytes:
        try:
            with self._file(row).open("rb") as file:
                return os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise UserError(f"{self._file(row)} cannot be read any more: {error.strerror}") from None


def _caption(text: str, images: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>" * images}, {"from": "gpt", "value": text.strip()}]
    return {"conversations": turns}


def _rows(file: Path) -> Iterator[list[Member]]:
    try:
        with tarfile.open(file, "r:") as archive:
            for _, row in groupby(_members(archive), key=_key):
                yield [
                    (KINDS[_suffix(member)], member.offset, member.offset_data, member.offset_data + member.size)
                    for member in sorted(row, key=_order)
                ]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{file} is not a whole, uncompressed tar file ({error}): unpack or copy it again") from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files of a kind that makes up rows."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        if member.isfile() and _suffix(member) in KINDS and not PurePosixPath(member.name).name.startswith("."):
            yield member
    # tarfile takes a damaged header for the end.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end of archive at byte {archive.offset}")


def _key(member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    return str(path.parent / path.name.split(".")[0])


def _suffix(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).suffix.lower()


def _order(member: tarfile.TarInfo) -> tuple[int, list[str]]:
    """Text first, then images by number."""
    return KINDS[_suffix(member)], [part.zfill(9) for part in PurePosixPath(member.name).name.split(".")]
