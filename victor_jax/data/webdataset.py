"""WebDataset: tar files in which neighbouring members with one name up to its first dot are one row.

    key.json   a row of LLaVA's format
    key.txt    or a caption, where there is no .json or that one is no conversation (img2dataset keeps notes in it)
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

from victor_jax.data.images import BadImage, ImageSource
from victor_jax.data.records import BadRow, Records
from victor_jax.errors import UserError

JSON, TXT, IMAGE = range(3)
KINDS = {".json": JSON, ".txt": TXT, ".jpg": IMAGE, ".jpeg": IMAGE, ".png": IMAGE, ".webp": IMAGE}


class _Members:
    """Where the members of each row are."""

    def __init__(self, files: list[Path]):
        self.files = [file.absolute() for file in files]
        # Machine integers, for many rows: of each member its kind, and the offsets of its header, data and end.
        members, ends, files_end = array.array("q"), array.array("q"), []
        for file in self.files:
            for row in _rows(file):
                members.extend(number for member in row for number in member)
                ends.append(len(members) // 4)
            files_end.append(len(ends))
        if not ends:
            raise UserError(f"{files[0]} holds no rows: no .json, .txt or image file is in it")
        self._members = np.frombuffer(members, np.int64).reshape(-1, 4)
        self._ends, self._files_end = np.frombuffer(ends, np.int64), files_end

    def __len__(self) -> int:
        return len(self._ends)

    def of_row(self, row: int, *kinds: int) -> np.ndarray:
        """int64 [n, 4]"""
        members = self._members[self._ends[row - 1] if row else 0 : self._ends[row]]
        return members[np.isin(members[:, 0], kinds)]

    def file(self, row: int) -> Path:
        return self.files[bisect_right(self._files_end, row)]

    def read(self, row: int, member: np.ndarray) -> bytes:
        _, _, start, end = member.tolist()
        with self.file(row).open("rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def key(self, row: int) -> str:
        """Read again from the tar header: the names of all rows would take too much memory."""
        with self.file(row).open("rb") as file:
            file.seek(int(self.of_row(row, *KINDS.values())[0, 1]))
            with tarfile.open(fileobj=file, mode="r:") as archive:
                return _key(archive.next())  # type: ignore[arg-type]  # it was there


def open_files(files: list[Path]) -> tuple[Records, ImageSource]:
    members = _Members(files)
    return TarRecords(members), TarImages(members)


class TarRecords:
    def __init__(self, members: _Members):
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._members.files[0]} has {len(self)} rows, not {index}")
        images = [f"{index}/{number}" for number in range(len(self._members.of_row(index, IMAGE)))]
        row: Any = {}
        for member in self._members.of_row(index, JSON, TXT):
            data = self._members.read(index, member)
            try:
                row = json.loads(data) if member[0] == JSON else _caption(data.decode(), len(images))
            except (ValueError, RecursionError) as error:
                raise BadRow(index, f"its {'.json' if member[0] == JSON else '.txt'} cannot be read: {error}") from None
            if not isinstance(row, dict):
                raise BadRow(index, "its .json is not an object with 'conversations'")
            if "conversations" in row:
                break
        return {**row, "image": images}

    def describe(self, index: int) -> str:
        return f"{self._members.file(index)}, row {index} ({self._members.key(index)})"


class TarImages(ImageSource):
    """`5/1` is the second image of row 5."""

    def __init__(self, members: _Members):
        self._members = members

    def read(self, path: str) -> bytes:
        row, _, number = path.partition("/")
        try:
            return self._members.read(int(row), self._members.of_row(int(row), IMAGE)[int(number)])
        except (OSError, ValueError, IndexError) as error:
            raise BadImage(path, f"cannot be read: {error}") from None


def _caption(text: str, images: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>" * images}, {"from": "gpt", "value": text.strip()}]
    return {"conversations": turns}


def _rows(file: Path) -> Iterator[list[tuple[int, int, int, int]]]:
    try:
        with tarfile.open(file, "r:") as archive:
            for _, row in groupby(_members(archive), key=_key):
                # .json before .txt before images, and those by number.
                ordered = sorted(row, key=lambda member: (_kind(member), _by_number(member)))
                yield [
                    (_kind(member), member.offset, member.offset_data, member.offset_data + member.size)
                    for member in ordered
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


def _kind(member: tarfile.TarInfo) -> int:
    return KINDS[_suffix(member)]


def _by_number(member: tarfile.TarInfo) -> list[str]:
    return [part.zfill(9) for part in PurePosixPath(member.name).name.split(".")]
