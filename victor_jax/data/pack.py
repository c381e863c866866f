"""Writes packs (see packed.py): one or several sources into one folder, shard by shard.

An ended process leaves `DST.partial`; the same call goes on after its last whole shard, and the result is the same
byte for byte, since rows, their order and the numbers of images depend on the arguments alone.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from victor_jax.data.images import BadImage, ImageSource
from victor_jax.data.packed import MISSING, PACK, RANDOM_ACCESS, VERSION, ShardReader
from victor_jax.data.records import BadRow, image_paths
from victor_jax.data.sources import needs_image_folder, open_source, stamps
from victor_jax.errors import UserError
from victor_jax.files import new_folder, partial_of

ROWS_PER_SHARD = 8192
ARGUMENTS = "arguments.json"  # in the unfinished folder: what it is the beginning of
TRIED = 64  # images of a source of which one must be there
# One record per group: any of them is read without its neighbours.
ROWS = "group_size:1"
IMAGES = "group_size:1,uncompressed"  # image files are compressed already


@dataclass
class Packed:
    rows: int = 0
    images: int = 0
    unread: list[str] = field(default_factory=list)  # a sentence for each row or image that could not be read


@dataclass(frozen=True)
class PackArguments:
    sources: list[tuple[str, float]]  # path, weight: how often each row is written, on average
    images: str | None  # the folder of the images that JSON sources name
    rows_per_shard: int = ROWS_PER_SHARD  # and images per shard of images
    seed: int = 0  # draws the rows of the fraction of a weight


def write_pack(
    arguments: PackArguments, destination: str | Path, progress: Callable[[int, int], Any] = lambda done, total: None
) -> Packed:
    """Rows of the sources in order, the bad ones too; image files are neither decoded nor checked."""
    if arguments.rows_per_shard < 1:
        raise UserError(f"rows per shard must be at least 1, not {arguments.rows_per_shard}")
    opened = [
        (path, *open_source(path, arguments.images if needs_image_folder(path) else None))
        for path, _ in arguments.sources
    ]
    chosen = [
        chosen_rows(len(records), weight, (arguments.seed, number))
        for number, ((_, records, _), (_, weight)) in enumerate(zip(opened, arguments.sources, strict=True))
    ]
    stamped = asdict(arguments) | {"files": [stamps(Path(path)) for path, _ in arguments.sources]}
    _check_same(partial_of(Path(destination)), json.loads(json.dumps(stamped)))
    done, total = Packed(), sum(map(len, chosen))
    with new_folder(Path(destination), resumable=True) as partial:
        (partial / ARGUMENTS).write_text(json.dumps(stamped))
        rows = _Shards(partial, "rows", ROWS, arguments.rows_per_shard)
        images = _Shards(partial, "images", IMAGES, arguments.rows_per_shard)
        for (path, records, source), indices in zip(opened, chosen, strict=True):
            numbering = _Numbering(path, source, images, done.unread)
            for index in indices.tolist():
                if (kept := rows.kept()) is not None:  # written before the process was ended
                    packed = json.loads(kept)
                    numbering.numbers_of(packed["row"], index, packed["images"])
                    rows.write(kept)
                else:
                    try:
                        raw = records[index]
                    except BadRow as error:
                        done.unread.append(f"{records.describe(index)}: {error.reason}")
                        raw = {}
                    rows.write(json.dumps({"row": raw, "images": numbering.numbers_of(raw, index)}).encode())
                progress(len(rows), total)
            numbering.check()
        rows.close()
        images.close()
        for shards in (rows, images):
            ShardReader(partial, shards.counts).check()
        pack = {"version": VERSION, "rows": rows.counts, "images": images.counts}
        (partial / PACK).write_text(json.dumps(pack, indent=2) + "\n")
        (partial / ARGUMENTS).unlink()
    done.rows, done.images = len(rows), len(images)
    return done


def chosen_rows(count: int, weight: float, seed: tuple[int, int]) -> np.ndarray:
    """int64, ascending: every row int(weight) times, and a fraction of them, drawn by the seed, once more."""
    if not 0 < weight < float("inf"):
        raise UserError(f"a weight must be above 0, not {weight}")
    times = np.full(count, int(weight))
    # NumPy keeps the raw bits of a generator the same in every version.
    order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
    times[order[: round((weight - int(weight)) * count)]] += 1
    return np.repeat(np.arange(count), times)


def _check_same(partial: Path, arguments: dict[str, Any]) -> None:
    try:
        before = json.loads((partial / ARGUMENTS).read_text())
    except (OSError, ValueError):
        return
    for key, value in arguments.items():
        if before.get(key) != value:
            raise UserError(
                f"{partial} is the beginning of a pack with other {key} ({before.get(key)}, now {value}): give the "
                "same arguments to go on with it, or remove it"
            )


class _Numbering:
    """The images of one source: writes each once, and knows its number."""

    def __init__(self, path: str, source: ImageSource, shards: "_Shards", unread: list[str]):
        self.path, self.source, self.shards, self.unread = path, source, shards, unread
        self.numbers: dict[str, int | str] = {}
        self.found = 0
        self.first_missing = ""

    def numbers_of(self, raw: dict[str, Any], index: int, known: list[int | str] | None = None) -> list[int | str]:
        """Of a row's images; `known` from a shard that was written before."""
        try:
            paths = image_paths(raw, index)
        except BadRow:
            return []  # the row is kept as it is: its reader finds out again
        for path, number in zip(paths, known or repeat(None), strict=False):
            if path not in self.numbers:
                self.numbers[path] = self._add(path, number)
        return [self.numbers[path] for path in paths]

    def _add(self, path: str, known: int | str | None) -> int | str:
        number = len(self.shards)
        try:
            if known == MISSING:
                raise BadImage(path, "it could not be read before")
            # No need to read again what a whole shard holds.
            self.shards.write(b"" if known is not None and self.shards.has_kept else self.source.read(path))
        except BadImage as error:
            self.unread.append(str(error))
            self.first_missing = self.first_missing or str(error)
            if len(self.numbers) + 1 == TRIED:
                self.check()
            return MISSING
        self.found += 1
        return number

    def check(self) -> None:
        """Where not one image is there, the folder is another one."""
        if self.first_missing and not self.found:
            raise UserError(
                f"none of the images of {self.path} can be read (is --images=DIR their folder?), the first: "
                f"{self.first_missing}"
            )


class _Shards:
    """Writes records into one shard after another. A shard gets its name when it is whole."""

    def __init__(self, folder: Path, name: str, options: str, limit: int):
        self.folder, self.name, self.options, self.limit = folder, name, options, limit
        self.counts: dict[str, int] = {}
        self._length = 0
        self._writer: Any = None
        self._kept: list[Any] = []  # readers of the whole shards of a process that was ended
        while (file := folder / self._file(len(self._kept))).exists():
            reader = array_record_module.ArrayRecordReader(str(file), RANDOM_ACCESS)
            if reader.num_records() != limit:
                break
            self._kept.append(reader)

    def __len__(self) -> int:
        return self._length

    @property
    def has_kept(self) -> bool:
        """Whether the record that is due is in a shard that was kept."""
        return self._length < len(self._kept) * self.limit

    def kept(self) -> bytes | None:
        shard, at = divmod(self._length, self.limit)
        return self._kept[shard].read(at, at + 1)[0] if self.has_kept else None

    def write(self, data: bytes) -> None:
        """Only counts where the record was kept."""
        shard, at = divmod(self._length, self.limit)
        if not self.has_kept:
            if at == 0:
                self.close()
                self._writer = array_record_module.ArrayRecordWriter(str(self._unfinished), self.options)
            self._writer.write(data)
        self.counts[self._file(shard)] = at + 1
        self._length += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            os.replace(self._unfinished, self.folder / self._file(len(self.counts) - 1))

    @property
    def _unfinished(self) -> Path:
        return self.folder / f"{self.name}.unfinished"

    def _file(self, shard: int) -> str:
        return f"{self.name}-{shard:05d}.array_record"
