"""victor-jax pack-data SRC --images=DIR DST: a data set as a few large files, for buckets and pods.

SRC is a .json or .jsonl file of LLaVA's format. DST then serves as `data.path`, and needs no image folder.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from victor_jax.errors import UserError

SHOWN = 10  # images that could not be read


def pack(source: str, images: str | None, destination: str, rows_per_shard: int) -> None:
    from victor_jax.data.packed import write_packed
    from victor_jax.data.records import open_records

    if Path(source).is_dir():
        raise UserError(f"{source} is a folder: expected a .json or .jsonl file")
    records = open_records(source)
    with tqdm(total=len(records), unit="row", desc="pack") as bar:
        done = write_packed(records, images, destination, rows_per_shard, bar.update)
    print(f"wrote {destination}: {done.rows} rows, {done.images} images")
    if done.missing:
        print(f"{len(done.missing)} images are missing, and their rows will be skipped in training:")
        for sentence in done.missing[:SHOWN]:
            print(f"  {sentence}")
        if len(done.missing) > SHOWN:
            print(f"  and {len(done.missing) - SHOWN} more")


def main(arguments: list[str]) -> None:
    from victor_jax.data.packed import ROWS_PER_SHARD

    parser = argparse.ArgumentParser(
        prog="victor-jax pack-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="a .json or .jsonl file")
    parser.add_argument("destination", metavar="DST", help="the folder to write")
    parser.add_argument("--images", metavar="DIR", help="the folder that the rows' image paths start from")
    parser.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD, metavar="N")
    given: Any = parser.parse_args(arguments)
    # A polite end is an end with cleaning up: nothing half-written stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pack(given.source, given.images, given.destination, given.rows_per_shard)
