"""Rows and images in ArrayRecord shards: a few large files in place of many small ones, for buckets and pods.

    pack.json                          what there is: the shards with their counts
    rows-00000.array_record  …         one JSON row each, as it was, and the numbers of its images
    images-00000.array_record  …       one image file each, byte for byte; once, however many rows show it

Rows and images lie apart, so that a pass over the text (lengths, checks) reads no image. A row that comes out of a
pack names its images by number: `17/coco/a.jpg` is image 17, which was `coco/a.jpg`.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from PIL import Image

from victor_jax.data.images import BadImage, ImageFolder, decode
from victor_jax.data.records import BadRow, Records, image_paths
from victor_jax.errors import UserError, join_names
from victor_jax.files import new_folder

PACK = "pack.json"
VERSION = 1
ROWS_PER_SHARD = 8192
MISSING = "missing"  # in place of a number: there was no such file when the pack was made
AT_ONCE = 256  # rows that are read together on a pass over all of them
# One record per group: any of them is read without its neighbours.
ROWS = "group_size:1"
IMAGES = "group_size:1,uncompressed"  # image files are compressed already
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class Packed:
    """What write_packed has done."""

    rows: int
    images: int
    missing: list[str]  # a sentence for each image that could not be read


def write_packed(
    records: Records,
    images_folder: str | Path | None,
    destination: str | Path,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Callable[[int], Any] = lambda rows: None,
) -> Packed:
    """Every row of `records`, the bad ones too, so that a row keeps its number; `progress` hears of rows done.

    A shard of images holds as many images as a shard of rows holds rows. Image files are neither decoded nor checked.
    """
    if rows_per_shard < 1:
        raise UserError(f"rows per shard must be at least 1, not {rows_per_shard}")
    with new_folder(Path(destination)) as partial:
        images = _Images(images_folder, _Shards(partial, "images", IMAGES, rows_per_shard))
        rows = _Shards(partial, "rows", ROWS, rows_per_shard)
        with rows, images.shards:
            for index, raw in enumerate(records):
                try:
                    paths = image_paths(raw, index)
                except BadRow:
                    paths = ()  # kept as it is: whoever reads the row finds it out again
                rows.write(json.dumps({"row": raw, "images": [images.number(path) for path in paths]}).encode())
                progress(1)
        if images.missing and not len(images.shards):
            raise UserError(f"none of the {len(images.missing)} images can be read, the first: {images.missing[0]}")
        pack = {"version": VERSION, "rows": rows.counts, "images": images.shards.counts}
        (partial / PACK).write_text(json.dumps(pack, indent=2) + "\n")
        for counts in (rows.counts, images.shards.counts):
            _Reader(partial, counts).check()
    return Packed(len(rows), len(images.shards), images.missing)


class _Images:
    """Image files into shards, each once."""

    def __init__(self, folder: str | Path | None, shards: "_Shards"):
        self.folder = ImageFolder(folder) if folder else None
        self.shards = shards
        self.numbers: dict[str, int | str] = {}
        self.missing: list[str] = []

    def number(self, path: str) -> int | str:
        """Of the image at this path, which is written if it is new; MISSING if it cannot be read."""
        if self.folder is None:
            raise UserError(f"the rows have images (such as {path}): say in which folder they are with --images=DIR")
        if path not in self.numbers:
            try:
                data = self.folder.read(path)
            except BadImage as error:
                self.missing.append(str(error))
                self.numbers[path] = MISSING
            else:
                self.numbers[path] = len(self.shards)
                self.shards.write(data)
        return self.numbers[path]


class _Shards:
    """Writes records into one shard after another."""

    def __init__(self, folder: Path, name: str, options: str, limit: int):
        self.folder, self.name, self.options, self.limit = folder, name, options, limit
        self.counts: dict[str, int] = {}
        self._length = 0
        self._file = ""
        self._writer: Any = None

    def __len__(self) -> int:
        return self._length

    def write(self, data: bytes) -> None:
        if self._length % self.limit == 0:
            self.close()
            self._file = f"{self.name}-{len(self.counts):05d}.array_record"
            self.counts[self._file] = 0
            self._writer = array_record_module.ArrayRecordWriter(str(self.folder / self._file), self.options)
        self._writer.write(data)
        self.counts[self._file] += 1
        self._length += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader:
    """Records by number over several shards; each shard is opened when it is first needed, in every process anew."""

    def __init__(self, folder: Path, counts: dict[str, int]):
        self.files = [folder / name for name in counts]
        self.ends = list(accumulate(counts.values()))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, index: int, count: int = 1) -> list[bytes]:
        """At most `count` records from `index` on: as many as its shard has."""
        shard = bisect_right(self.ends, index)
        first = self.ends[shard - 1] if shard else 0
        return self._shard(shard).read(index - first, min(index + count, self.ends[shard]) - first)

    def check(self) -> None:
        for shard in range(len(self.files)):
            self._shard(shard)

    def _shard(self, shard: int) -> Any:
        if shard not in self._open:
            first = self.ends[shard - 1] if shard else 0
            reader = array_record_module.ArrayRecordReader(str(self.files[shard]), RANDOM_ACCESS)
            if reader.num_records() != self.ends[shard] - first:
                raise UserError(
                    f"{self.files[shard]} has {reader.num_records()} records and should have "
                    f"{self.ends[shard] - first}: it is not whole (is the disk full?), write or copy it again"
                )
            self._open[shard] = reader
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


class PackedRecords:
    """The rows of a folder that write_packed has made."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        try:
            pack = json.loads((self.folder / PACK).read_text())
        except OSError:
            raise UserError(f"{self.folder} has no {PACK}: it is no folder of victor-jax pack-data") from None
        except ValueError:
            raise UserError(f"{self.folder / PACK} is not JSON: copy it again") from None
        if pack.get("version") != VERSION:
            raise UserError(f"{self.folder / PACK} has version {pack.get('version')}, not {VERSION}: pack again")
        absent = [name for name in [*pack["rows"], *pack["images"]] if not (self.folder / name).exists()]
        if absent:
            raise UserError(f"{self.folder} lacks {join_names(absent)}: copy the folder again")
        self._rows, self._images = (_Reader(self.folder, pack[kind]) for kind in ("rows", "images"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows, not {index}")
        return _row(self._rows.read(index)[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = 0
        while index < len(self):
            rows = self._rows.read(index, AT_ONCE)
            yield from map(_row, rows)
            index += len(rows)

    def describe(self, index: int) -> str:
        return f"{self.folder}, row {index}"

    def images(self) -> "PackedImages":
        return PackedImages(self._images)


def _row(data: bytes) -> dict[str, Any]:
    packed = json.loads(data)
    row, numbers = packed["row"], packed["images"]
    if numbers:
        paths = [row["image"]] if isinstance(row["image"], str) else row["image"]
        row["image"] = [f"{number}/{path}" for number, path in zip(numbers, paths, strict=True)]
    return row


class PackedImages:
    """The images of a pack, by the paths that its rows name."""

    def __init__(self, reader: _Reader):
        self._reader = reader

    def open(self, path: str) -> Image.Image:
        number, _, name = path.partition("/")
        if number == MISSING:
            raise BadImage(name, "it could not be read when the pack was made")
        if not (number.isascii() and number.isdecimal() and int(number) < len(self._reader)):
            raise BadImage(path, "the pack has no such image")
        return decode(self._reader.read(int(number))[0], name)
