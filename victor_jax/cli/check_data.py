"""victor-jax check-data --config=FILE[:args] [--config.data.path=… …]: walks the data without training.

Counts, lengths, the shapes of batches (in parts as on one device), rows and images that cannot be used, and a few rows
as the model reads them, with what is supervised in colour.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import grain
import numpy as np
from absl import flags
from tqdm import tqdm

from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse
from victor_jax.data.images import BadImage, Records
from victor_jax.data.index import build_index
from victor_jax.data.inputs import open_reader, with_paths
from victor_jax.data.labels import MARKS, Reader, marked_text
from victor_jax.data.loader import read_ahead
from victor_jax.data.records import Bad, parse_record
from victor_jax.data.schedule import Index, Schedule
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.losses import IGNORE
from victor_jax.training import command, settings
from victor_jax.training.setup import open_start, parts_of

LISTED = 200  # bad rows that are named
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
FEWEST_IMAGES = 2048  # below that, worker processes take longer to start than they save
GREEN = ("\033[32m", "\033[0m")


def check(
    reader: Reader,
    out: TextIO,
    workers: int = 0,
    examples: int = 2,  # rows shown, of each modality
    read_images: bool = True,
    progress: bool = True,
) -> tuple[Index, list[Bad]]:
    """Prints what there is; returns also the rows that training would leave out."""
    index = build_index(reader, workers, None, progress)
    of_images = dict(_bad_images(reader.records, index, workers, progress)) if read_images else {}
    bad = sorted([*index.bad, *of_images.items()])
    good = np.setdiff1d(np.arange(len(reader)), [row for row, _ in bad])
    print(f"{len(reader)} rows, {len(good)} of them good", file=out)
    of_them = f", {len(of_images)} of them for missing or unreadable images" if bad else ""
    print(f"{len(bad)} bad rows{of_them}{'' if read_images else ' (images were not read)'}", file=out)
    for row, reason in bad[:LISTED]:
        print(f"  {reader.records.describe(row)}: {reason}", file=out)
    if len(bad) > LISTED:
        print(f"  and {len(bad) - LISTED} more", file=out)
    _print_lengths(index.text_lengths[good], index.image_counts[good], reader.max_length, out)
    marks = GREEN if out.isatty() and not os.environ.get("NO_COLOR") else MARKS
    for has_images in (True, False):
        rows = good[(index.image_counts[good] > 0) == has_images]
        if not len(rows):
            continue
        evenly = np.linspace(0, len(rows) - 1, examples + 2).astype(int)[1:-1]
        for row in np.unique(rows[evenly]).tolist():
            described = reader.records.describe(row)
            print(f"\n{described}; {'supervised'.join(marks)}:\n{shown(reader, row, marks)}", file=out)
    return index, bad


def shown(reader: Reader, row: int, marks: tuple[str, str] = MARKS) -> str:
    """The row as the model reads it."""
    example = reader[row]
    names = iter(example.images)
    tokens = [f"<image: {next(names)}>" if token == IMAGE else token for token in example.ids.tolist()]
    return marked_text(tokens, (example.targets != IGNORE).tolist(), reader.tokenizer, marks)


def _print_lengths(text_lengths: np.ndarray, image_counts: np.ndarray, max_length: int, out: TextIO) -> None:
    print(f"\ntext tokens of a row, cut where text and images reach {max_length} positions:", file=out)
    print(f"{'':12}{'rows':>10}" + "".join(f"{f'{share} %':>8}" for share in PERCENTILES) + f"{'mean':>8}", file=out)
    for images in np.unique(image_counts):
        here = text_lengths[image_counts == images]
        name = "text only" if images == 0 else f"{images} image" if images == 1 else f"{images} images"
        at = np.percentile(here, PERCENTILES, method="nearest")
        print(f"{name:12}{len(here):10}" + "".join(f"{n:8}" for n in at) + f"{here.mean():8.0f}", file=out)


def print_schedule(schedule: Schedule, method: Method, out: TextIO) -> None:
    """The parts of an epoch. Broken images are only found when they are read: a run's schedule counts on them too."""
    rows, parts, plan = schedule.part_rows, schedule.parts, method.plan
    print(
        f"\n{schedule.steps_per_epoch} steps per epoch, each of {parts} part{'s' * (parts > 1)} of "
        f"{rows} rows; programs to compile: {len(schedule.stretches)}; {schedule.padding_share:.1%} of the text "
        "positions are padding",
        file=out,
    )
    print(f"{'parts':>8}{'padding':>9}{'images':>8}   text positions of a row -> positions in the stages", file=out)
    for stretch in schedule.stretches:
        lengths = plan.stage_lengths(plan.sizes(stretch.shape.counts(method.registers)))
        shown = f"{stretch.shape.text} -> {', '.join(map(str, lengths))}"
        padding = f"{stretch.padding_share(rows):.1%}"
        print(f"{stretch.micro_batches:8}{padding:>9}{stretch.shape.images:8}   {shown}", file=out)


def _bad_images(records: Records, index: Index, workers: int, progress: bool) -> Iterator[Bad]:
    """Rows with an image that cannot be read; each image is read once, however many rows show it."""
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(index.image_counts).tolist():
        for path in parse_record(records[row], row).images[: index.image_counts[row]]:
            rows_of.setdefault(path, []).append(row)
    reasons = grain.MapDataset.source(list(rows_of)).map(functools.partial(_unreadable, records))
    with closing(read_ahead(reasons, workers if len(rows_of) >= FEWEST_IMAGES else 0)) as results:
        counted = tqdm(results, "reading images", len(rows_of), unit=" images", disable=not progress or not rows_of)
        for rows, reason in zip(rows_of.values(), counted, strict=True):
            if reason:
                yield from ((row, reason) for row in rows)


def _unreadable(records: Records, path: str) -> str:
    """The reason, or nothing."""
    try:
        records.open(path)
    except BadImage as error:
        return str(error)
    return ""


def main(arguments: list[str]) -> int:
    """0: fit for training; 1: no good row, or more bad ones than the recipe allows."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("rows", 2, "rows shown of each modality", lower_bound=0, flag_values=values)
        flags.DEFINE_bool("read_images", True, "open every image", flag_values=values)

    given = command.parse("victor-jax check-data", define, arguments)
    recipe = settings.read(given.config)
    with tempfile.TemporaryDirectory() as folder:  # of the made-up data set
        start = open_start(recipe)
        data, model = with_paths(recipe.data, start.folder, Path(folder)), start.config
        method = parse(recipe.compression, model)
        reader = open_reader(data, model, method)
        index, bad = check(reader, sys.stdout, data.workers, given.rows, given.read_images)
    if len(bad) == len(reader):
        print("\nerror: no row can be used", file=sys.stderr)
        return 1
    schedule = Schedule(index, recipe.batch_size, recipe.seed, method.registers, parts_of(recipe, devices=1))
    print_schedule(schedule, method, sys.stdout)
    if len(bad) > data.max_bad_rows:
        print(f"\nerror: {len(bad)} bad rows are more than data.max_bad_rows={data.max_bad_rows}", file=sys.stderr)
        return 1
    return 0
