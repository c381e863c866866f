"""Writes packs (see packed.py): one or several sources into one folder, shard by shard.

An ended process leaves `DST.partial`; the same call goes on after its last whole shard, and the result is the same
byte for byte, since rows, their order and the numbers of images depend on the arguments alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from victor_jax.data.images import BadImage, Records
from victor_jax.data.packed import ARGUMENTS, MISSING, PACK, VERSION, ShardReader
from victor_jax.data.records import BadRow, image_paths
from victor_jax.data.sources import needs_image_folder, open_source, stamps
from victor_jax.errors import UserError
from victor_jax.files import check_free, new_folder, write_whole

ROWS_PER_SHARD = 8192
TRIED = 64  # images of a source of which one must be there
# One record per group: any of them is read without its neighbours.
OPTIONS = {"rows": "group_size:1", "images": "group_size:1,uncompressed"}  # image files are compressed already


def write_pack(
    sources: list[tuple[str, float]],  # path, and how often each row is written on average
    images: str | None,  # the folder of the images that JSON sources name
    destination: Path,
    rows_per_shard: int = ROWS_PER_SHARD,
    seed: int = 0,  # draws the rows of the fraction of a weight
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[int, int, list[str]]:
    """Rows, images, and a sentence for each row or image that could not be read.

    The rows of the sources in order, the bad ones too; image files are neither decoded nor checked.
    """
    if rows_per_shard < 1:
        raise UserError(f"rows per shard must be at least 1, not {rows_per_shard}")
    check_free(destination)
    opened = [open_source(path, images if needs_image_folder(path) else None) for path, _ in sources]
    chosen = [
        chosen_rows(len(records), weight, (seed, number))
        for number, (records, (_, weight)) in enumerate(zip(opened, sources, strict=True))
    ]
    order = np.stack([np.repeat(np.arange(len(chosen)), [*map(len, chosen)]), np.concatenate(chosen)], axis=1)
    stamped = [[path, weight, stamps(Path(path))] for path, weight in sources]
    with new_folder(destination, resumable=True) as partial:
        _begin(partial, {"sources": stamped, "images": images, "rows_per_shard": rows_per_shard, "seed": seed})
        writer = _Writer(partial, [path for path, _ in sources], opened)
        for start in range(0, len(order), rows_per_shard):
            shard = writer.write_shard(start // rows_per_shard, order[start : start + rows_per_shard])
            for done, _ in enumerate(shard, start + 1):
                progress(done, len(order))
        for source in range(len(sources)):
            writer.check_images(source)
        for counts in writer.counts.values():
            ShardReader(partial, counts).check()
        (partial / PACK).write_text(json.dumps({"version": VERSION, **writer.counts}, indent=2) + "\n")
    return len(order), writer.images, writer.unread


def chosen_rows(count: int, weight: float, seed: tuple[int, int]) -> np.ndarray:
    """int64, ascending: every row int(weight) times, and a fraction of them, drawn by the seed, once more."""
    if not 0 < weight < float("inf"):
        raise UserError(f"a weight must be above 0, not {weight}")
    times = np.full(count, int(weight))
    # NumPy keeps the raw bits of a generator the same in every version.
    order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
    times[order[: round((weight - int(weight)) * count)]] += 1
    return np.repeat(np.arange(count), times)


def _begin(partial: Path, arguments: dict[str, Any]) -> None:
    """Notes what is written here; what an ended process has left must be the beginning of the same."""
    file, text = partial / ARGUMENTS, json.dumps(arguments, indent=2) + "\n"
    if file.exists() and file.read_text() != text:
        raise UserError(
            f"{partial} is the beginning of a pack with other arguments, or its files have changed: give the same "
            "arguments to go on with it, or remove it"
        )
    write_whole(file, text)


class _Writer:
    """Shard n of the rows, with shard n of the images: those that its rows are the first to show."""

    def __init__(self, folder: Path, names: list[str], sources: list[Records]):
        self.folder, self.names, self.sources = folder, names, sources
        self.numbers: list[dict[str, int | str]] = [{} for _ in sources]  # of images, by name; MISSING
        self.images = 0
        self.unread: list[str] = []
        self.counts: dict[str, dict[str, int]] = {"rows": {}, "images": {}}

    def write_shard(self, shard: int, order: np.ndarray) -> Iterator[None]:
        """order: int64 [rows, 2], source and row. Yields after each of them."""
        files = {kind: self.folder / f"{kind}-{shard:05d}.array_record" for kind in OPTIONS}
        first = self.images
        if files["rows"].exists():  # an ended process has written it
            kept = ShardReader(self.folder, {files["rows"].name: len(order)})
            for at, (source, index) in enumerate(order.tolist()):
                self._know(source, index, json.loads(kept[at]))
                yield
        else:
            # Closed in reverse: with whole rows, the images are whole too.
            with _opened("rows", files["rows"]) as rows, _opened("images", files["images"]) as images:
                for source, index in order.tolist():
                    rows.write(self._record(source, index, images))
                    yield
        self.counts["rows"][files["rows"].name] = len(order)
        if self.images > first:
            self.counts["images"][files["images"].name] = self.images - first
        else:
            files["images"].unlink(missing_ok=True)

    def check_images(self, source: int) -> None:
        """Where not one image of a source is there, the folder is another one."""
        if set(self.numbers[source].values()) == {MISSING}:
            shutil.rmtree(self.folder)  # only other arguments can help, and they would not go on with it
            raise UserError(
                f"none of the images of {self.names[source]} can be read (is --images=DIR their folder?), the "
                f"last: {self.unread[-1]}"
            )

    def _record(self, source: int, index: int, images: Any) -> bytes:
        records = self.sources[source]
        try:
            row = records[index]
        except BadRow as error:
            self.unread.append(f"{records.describe(index)}: {error.reason}")
            row = {}
        numbers = self.numbers[source]
        for path in _paths(row, index):
            if path in numbers:
                continue
            try:
                images.write(records.read(path))
                numbers[path], self.images = self.images, self.images + 1
            except BadImage as error:
                numbers[path] = MISSING
                self.unread.append(str(error))
                if len(numbers) == TRIED:
                    self.check_images(source)
        return json.dumps({"row": row, "images": [numbers[path] for path in _paths(row, index)]}).encode()

    def _know(self, source: int, index: int, record: dict[str, Any]) -> None:
        """The numbers of a row that was written before."""
        for path, number in zip(_paths(record["row"], index), record["images"], strict=True):
            if path in self.numbers[source]:
                continue
            self.numbers[source][path] = number
            if number == MISSING:
                self.unread.append(f"image {path}: it could not be read before")
            else:
                self.images += 1


def _paths(row: dict[str, Any], index: int) -> tuple[str, ...]:
    try:
        return image_paths(row, index)
    except BadRow:
        return ()  # the row is kept as it is: its reader finds out again


@contextmanager
def _opened(kind: str, file: Path) -> Iterator[Any]:
    """A shard to write; it gets its name when it is whole."""
    unfinished = file.with_suffix(".unfinished")
    try:
        writer = array_record_module.ArrayRecordWriter(str(unfinished), OPTIONS[kind])
        yield writer
        writer.close()
    except RuntimeError as error:
        if str(unfinished) not in str(error):
            raise
        raise OSError(str(error)) from error  # of a disk that is full
    os.replace(unfinished, file)
