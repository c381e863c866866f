"""A pack: rows and images in ArrayRecord shards, a few large files instead of many small ones, for buckets and pods.

    pack.json                          the shards with their counts
    arguments.json                     what it was made of
    rows-00000.array_record  …         one JSON object each: the row as it was, and the numbers of its images
    images-00000.array_record  …       one image file each, byte for byte; once, however many rows show it

Rows and images are apart, so a pass over the text (lengths, checks) reads no image. A row that is read from a pack
names its images by number: `17/coco/a.jpg` is image 17, which was `coco/a.jpg`. `pack.py` writes packs.
"""

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from victor_jax.data.images import BadImage, Records
from victor_jax.data.records import BadRow, image_paths
from victor_jax.errors import UserError, join_names

PACK = "pack.json"
ARGUMENTS = "arguments.json"
VERSION = 1
MISSING = "missing"  # instead of a number: the image could not be read when the pack was made
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class Pack(Records):
    """The rows of a pack, and its images by the names that the rows give them."""

    def __init__(self, folder: Path):
        self._folder = folder = folder.absolute()
        counts = _shards(folder / PACK)
        if absent := [name for shards in counts for name in shards if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {join_names(absent)}: copy the folder again")
        self._rows, self._images = (ShardReader(folder, shards) for shards in counts)
        if not len(self._rows):
            raise UserError(f"{folder} holds no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        try:
            packed = json.loads(self._rows[index])
        except (RuntimeError, json.JSONDecodeError):
            raise BadRow(index, "its bytes in the pack are damaged: copy the pack again") from None
        row, numbers = packed["row"], packed["images"]
        if numbers:
            row["image"] = [f"{number}/{path}" for number, path in zip(numbers, image_paths(row, index), strict=True)]
        return row

    def describe(self, index: int) -> str:
        return f"{self._folder}, row {index}"

    def read(self, path: str) -> bytes:
        number, _, name = path.partition("/")
        if number == MISSING:
            raise BadImage(name, "it could not be read when the pack was made")
        if not (number.isascii() and number.isdecimal() and int(number) < len(self._images)):
            raise BadImage(path, "the pack has no such image")
        try:
            return self._images[int(number)]
        except RuntimeError:
            raise BadImage(name, "its bytes in the pack are damaged: copy the pack again") from None


def _shards(file: Path) -> list[dict[str, int]]:
    """The shards of rows and those of images, each with the count of its records."""
    if not file.is_file():
        raise UserError(
            f"{file.parent} has no {file.name}: it is no folder of victor-jax pack-data, and has no .parquet or .tar "
            "files"
        )
    try:
        pack = json.loads(file.read_text())
        version, counts = pack.get("version"), [dict(pack[kind]) for kind in ("rows", "images")]
        if not all(int(count) == count > 0 for shards in counts for count in shards.values()):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{file} is damaged: copy it again") from None
    if version != VERSION:
        raise UserError(f"{file} has version {version}, not {VERSION}: pack again")
    return counts


class ShardReader:
    """Records by number over several shards. Each process opens a shard when it first needs it."""

    def __init__(self, folder: Path, counts: dict[str, int]):
        self.files = [folder / name for name in counts]
        self.ends = list(accumulate(counts.values()))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> bytes:
        """Raises RuntimeError where the bytes are damaged."""
        shard = bisect_right(self.ends, index)
        at = index - (self.ends[shard - 1] if shard else 0)
        return self._shard(shard).read(at, at + 1)[0]

    def check(self) -> None:
        for shard in range(len(self.files)):
            self._shard(shard)

    def _shard(self, shard: int) -> Any:
        if shard not in self._open:
            count = self.ends[shard] - (self.ends[shard - 1] if shard else 0)
            reader = array_record_module.ArrayRecordReader(str(self.files[shard]), RANDOM_ACCESS)
            if reader.num_records() != count:
                raise UserError(
                    f"{self.files[shard]} has {reader.num_records()} records and should have {count}: it is not whole "
                    "(is the disk full?), write or copy it again"
                )
            self._open[shard] = reader
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}
