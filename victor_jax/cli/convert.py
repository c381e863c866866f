"""victor-jax convert SRC DST --to={hf,llava,orbax}: a checkpoint from one format to another.

Tensors pass one by one: memory stays far below the size of the checkpoint.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm


def convert(source: str | Path, destination: str | Path, to: str, **parts: Any) -> None:
    """Every tensor bit by bit, whatever the formats; prints what was recognised and what was skipped.

    `parts`: a vision tower, a projector or a seed for one, as `open_checkpoint` takes them.
    """
    from victor_jax.weights.read import open_checkpoint
    from victor_jax.weights.write import write_checkpoint

    checkpoint = open_checkpoint(source, **parts)
    print(
        f"{checkpoint.folder}: {checkpoint.format} layout, {checkpoint.config.language.family}, "
        f"{len(checkpoint.tensors)} tensors, {checkpoint.nbytes / 1e9:.2f} GB {checkpoint.dtype}, "
        f"compression {checkpoint.compression}"
    )
    if checkpoint.skipped:
        print(f"skipped, carrying nothing we need: {len(checkpoint.skipped)} ({checkpoint.skipped[0]}, …)")
    with tqdm(total=checkpoint.nbytes, unit="B", unit_scale=True, desc=f"to {to}") as bar:
        write_checkpoint(checkpoint, destination, to, bar.update)
    print(f"wrote {destination}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="victor-jax convert", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", help="a checkpoint: a folder, or org/name on the Hugging Face Hub")
    parser.add_argument("destination", metavar="DST", help="the folder to write")
    parser.add_argument("--to", required=True, choices=("hf", "llava", "orbax"))
    parser.add_argument("--vision", help="a CLIP folder or its org/name, where SRC holds no vision tower")
    parser.add_argument("--projector", help="a mm_projector.bin, where SRC holds no projector")
    parser.add_argument("--seed", type=int, default=0, help="draws the projector where none is given")
    given = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the traceback of an error that we print
    convert(**vars(given))
