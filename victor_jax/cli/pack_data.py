"""victor-jax pack-data SRC[=WEIGHT] … DST [--images=DIR]: data sets as a few large files, for buckets and pods.

SRC is a .json or .jsonl file of LLaVA's format, a .parquet file with the columns of LLaVA-NeXT-Data or FineVision, a
WebDataset .tar, a folder of .parquet or of .tar files, or a pack. WEIGHT says how often its rows are written: 1, the
default, is every row once; 2 is every row twice (its images once); 0.5 is half of the rows, drawn by --seed.

DST then serves as `data.path`, and needs no image folder. If the command is ended, the same command goes on after the
last whole shard.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

SHOWN = 10  # images and rows that could not be read


def main(arguments: list[str]) -> None:
    from victor_jax.data.pack import ROWS_PER_SHARD, write_pack

    parser = argparse.ArgumentParser(
        prog="victor-jax pack-data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sources", metavar="SRC[=WEIGHT]", nargs="+", type=_source, help="rows, and how often")
    parser.add_argument("destination", metavar="DST", help="the folder to write")
    parser.add_argument("--images", metavar="DIR", help="the folder that the image paths of JSON sources start from")
    parser.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows of the fraction of a weight")
    given = parser.parse_intermixed_args(arguments)
    with tqdm(unit="row", desc="pack") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows, images, unread = write_pack(
            given.sources, given.images, Path(given.destination), given.rows_per_shard, given.seed, progress
        )
    print(f"wrote {given.destination}: {rows} rows, {images} images")
    if unread:
        print(f"{len(unread)} images or rows cannot be read, and their rows will be skipped in training:")
        for sentence in unread[:SHOWN]:
            print(f"  {sentence}")
        if len(unread) > SHOWN:
            print(f"  and {len(unread) - SHOWN} more")


def _source(text: str) -> tuple[str, float]:
    path, _, weight = text.rpartition("=")
    if path and not Path(text).exists():
        try:
            return path, float(weight)
        except ValueError:
            pass  # an = in a name
    return text, 1.0
