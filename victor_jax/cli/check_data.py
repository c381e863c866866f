"""victor-jax check-data --config=FILE[:args] [--config.data.path=… …]: walks the data without training.

Counts, lengths, the shapes that batches will have, rows and images that cannot be used, and a few rows as the model
reads them, with what it learns in colour.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from tqdm import tqdm

from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse
from victor_jax.data.images import BadImage, ImageSource
from victor_jax.data.index import Bad, Index, Reader, build_index, spread
from victor_jax.data.records import parse_record
from victor_jax.data.schedule import Schedule
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.losses import IGNORE

if TYPE_CHECKING:  # jax is imported when the command line is known to be right
    from victor_jax.training.settings import Settings

LISTED = 200  # bad rows that are named
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
IMAGES_AT_ONCE = 256
FEWEST_IMAGES = 2048  # below that, worker processes take longer to start than to help
GREEN, END = "\033[32m", "\033[0m"


@dataclass(frozen=True)
class CheckSettings:
    method: Method
    batch: int
    parts: int
    seed: int
    workers: int
    examples: int = 2  # rows shown, of each modality
    read_images: bool = True


def check(
    reader: Reader, images: ImageSource, settings: CheckSettings, out: TextIO, progress: bool = True
) -> list[Bad]:
    """Prints what there is and returns the rows that training would leave out."""
    index = build_index(reader, settings.workers, None, progress)
    text_bad = dict(index.bad)
    image_bad: dict[int, str] = {}
    if settings.read_images:
        image_bad = dict(_bad_images(reader, images, index, settings.workers, progress))
    good = np.setdiff1d(np.arange(len(reader)), [*text_bad, *image_bad])
    print(f"{len(reader)} rows, {len(good)} of them good", file=out)
    _print_lengths(index.text_lengths[good], index.image_counts[good], reader, out)
    if len(good):
        # Images are only known to be broken when they are read: the schedule of a run counts on them too.
        _print_schedule(
            Schedule(
                index,
                settings.batch,
                settings.seed,
                settings.method.registers,
                settings.parts,
            ),
            reader,
            settings,
            out,
        )
    bad = sorted((text_bad | image_bad).items())
    _print_bad(bad, len(image_bad), settings.read_images, reader, out)
    for has_images in (True, False):
        rows = good[(index.image_counts[good] > 0) == has_images]
        if len(rows):
            for row in rows[np.unique(np.linspace(0, len(rows) - 1, settings.examples + 2).astype(int)[1:-1])]:
                _print_row(reader, int(row), out)
    return bad


def _print_lengths(text_lengths: np.ndarray, image_counts: np.ndarray, reader: Reader, out: TextIO) -> None:
    print(f"\ntext tokens of a row, cut where text and images reach {reader.max_length} positions:", file=out)
    print(f"{'':12}{'rows':>10}" + "".join(f"{f'{share} %':>8}" for share in PERCENTILES) + f"{'mean':>8}", file=out)
    for images in np.unique(image_counts):
        here = text_lengths[image_counts == images]
        name = "text only" if images == 0 else f"{images} image" if images == 1 else f"{images} images"
        at = np.percentile(here, PERCENTILES, method="nearest")
        print(f"{name:12}{len(here):10}" + "".join(f"{n:8}" for n in at) + f"{here.mean():8.0f}", file=out)


def _print_schedule(schedule: Schedule, reader: Reader, settings: CheckSettings, out: TextIO) -> None:
    programs = "1 program" if len(schedule.layouts) == 1 else f"{len(schedule.layouts)} programs"
    in_parts = f" in {schedule.parts} parts" if schedule.parts > 1 else ""
    print(
        f"\n{schedule.steps_per_epoch} steps per epoch, {schedule.batch} rows each{in_parts}; {programs}; "
        f"{schedule.padding_share:.1%} of the text positions are padding:",
        file=out,
    )
    print(f"{'steps':>8}{'padding':>9}{'images':>8}   text positions of each part -> positions in the stages", file=out)
    method = settings.method
    for layout in schedule.layouts:
        parts = "; ".join(
            f"{part.text} -> "
            + ", ".join(map(str, method.plan.stage_lengths(method.plan.sizes(part.counts(method.registers)))))
            for part in layout.parts
        )
        padding = f"{layout.padding_share(schedule.batch):.1%}"
        print(f"{layout.batches:8}{padding:>9}{layout.parts[0].images:8}   {parts}", file=out)


def _print_bad(bad: list[Bad], of_images: int, images_read: bool, reader: Reader, out: TextIO) -> None:
    counted = f"{len(bad)} bad rows, {of_images} of them for missing or unreadable images" if bad else "no bad rows"
    print(f"\n{counted}", end="", file=out)
    print("" if images_read else " (images were not read)", end=":\n" if bad else "\n", file=out)
    for row, reason in bad[:LISTED]:
        print(f"  {reader.records.describe(row)}: {reason}", file=out)
    if len(bad) > LISTED:
        print(f"  and {len(bad) - LISTED} more", file=out)


def _bad_images(reader: Reader, images: ImageSource, index: Index, workers: int, progress: bool) -> Iterator[Bad]:
    """Rows with an image that cannot be read; each image is read once, however many rows show it."""

    def named() -> Iterator[tuple[int, tuple[str, ...]]]:
        for row in np.flatnonzero(index.image_counts).tolist():
            yield row, parse_record(reader.records[row], row).images[: index.image_counts[row]]

    paths = list(dict.fromkeys(path for _, of_row in named() for path in of_row))
    chunks = [paths[start : start + IMAGES_AT_ONCE] for start in range(0, len(paths), IMAGES_AT_ONCE)]
    broken: dict[str, str] = {}
    with (
        tqdm(total=len(paths), desc="reading images", unit=" images", disable=not progress or not paths) as bar,
        spread(_read_images, images, chunks, workers if len(paths) >= FEWEST_IMAGES else 0) as results,
    ):
        for chunk, found in zip(chunks, results, strict=True):
            broken |= found
            bar.update(len(chunk))
    if broken:
        for row, of_row in named():
            if first := next((path for path in of_row if path in broken), None):
                yield row, broken[first]


def _read_images(images: ImageSource, paths: list[str]) -> dict[str, str]:
    """Path -> reason of those that cannot be read."""
    broken = {}
    for path in paths:
        try:
            images.open(path)
        except BadImage as error:
            broken[path] = str(error)
    return broken


def _print_row(reader: Reader, row: int, out: TextIO) -> None:
    coloured = out.isatty() and not os.environ.get("NO_COLOR")
    start, end = (GREEN, END) if coloured else ("[[", "]]")
    print(f"\n{reader.records.describe(row)}; {start}learnt{end}:", file=out)
    print("".join(f"{start}{text}{end}" if learnt else text for text, learnt in decoded(reader, row)), file=out)


def decoded(reader: Reader, row: int) -> Iterator[tuple[str, bool]]:
    """The row as the model reads it: runs of text, and whether they are learnt."""
    example = reader[row]
    learnt = example.targets != IGNORE
    is_image = example.ids == IMAGE
    paths = iter(example.images)
    edges = np.flatnonzero((learnt[1:] != learnt[:-1]) | is_image[1:] | is_image[:-1]) + 1
    piece: list[int] = []  # since the last image
    before = ""
    for run in np.split(np.arange(len(learnt)), edges):
        if is_image[run[0]]:
            yield f"<image: {next(paths)}>", False
            piece, before = [], ""
            continue
        piece += example.ids[run].tolist()
        text = reader.tokenizer.decode(piece, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield text[len(before) :], bool(learnt[run[0]])
        before = text


def main(arguments: list[str]) -> int:
    from absl import flags

    from victor_jax.training import command
    from victor_jax.training.settings import read

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("rows", 2, "rows shown of each modality", lower_bound=0, flag_values=values)
        flags.DEFINE_bool("read_images", True, "open every image", flag_values=values)

    given = command.parse("victor-jax check-data", define, arguments)
    return _run(read(given.config), given.rows, given.read_images)


def _run(settings: "Settings", rows: int, read_images: bool) -> int:
    """0: fit for training; 1: more bad rows than the recipe allows."""
    from victor_jax.training.inputs import data_paths, open_reader, open_rows
    from victor_jax.training.setup import open_start

    data = settings.data
    with tempfile.TemporaryDirectory() as folder:  # of the made-up data set
        paths = data_paths(settings, Path(folder))
        records, images = open_rows(paths)
        model = open_start(settings).config
        method = parse(settings.compression, model)
        reader = open_reader(settings, model, method, records, paths)
        checked = CheckSettings(
            method,
            settings.batch_size,
            settings.micro_batches,
            settings.seed,
            data.workers,
            rows,
            read_images,
        )
        bad = check(reader, images, checked, sys.stdout)
    if len(bad) > data.max_bad_rows:
        print(f"\nerror: {len(bad)} bad rows are more than data.max_bad_rows={data.max_bad_rows}", file=sys.stderr)
        return 1
    return 0
