"""How long each row is: one pass over all records, kept in a file, so that shapes and schedule are known at once."""

import functools
import hashlib
import json
import os
import pickle
import uuid
import zipfile
from contextlib import closing
from pathlib import Path

import grain
import numpy as np
from tqdm import tqdm

from victor_jax.data.labels import Reader, checksum
from victor_jax.data.loader import read_ahead
from victor_jax.data.records import Bad, BadRow, check_bad_rows
from victor_jax.data.schedule import Index
from victor_jax.data.sources import stamps
from victor_jax.errors import UserError

CHUNK = 1024  # rows that are measured at once
FEWEST = 16384  # rows: with fewer, worker processes take longer to start than they save


def open_index(
    reader: Reader,
    path: str | Path,
    folder: Path,
    workers: int,
    max_bad_rows: int | None = None,
    progress: bool = True,
) -> Index:
    """The index of the data at `path`; kept in `folder` and found there the next time."""
    kept = folder / f"index-{index_key(reader, Path(path))}.npz"
    if (index := _read(kept)) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)  # before minutes of reading
        except OSError as error:
            raise UserError(f"config.data.index: {folder} cannot be made ({error.strerror}): name another") from None
        index = build_index(reader, workers, max_bad_rows, progress)
        _write(kept, index)
    check_bad_rows(index.bad, max_bad_rows, reader.records)
    return index


def build_index(reader: Reader, workers: int, max_bad_rows: int | None = None, progress: bool = True) -> Index:
    found = np.zeros((4, len(reader)), np.int64)
    bad: list[Bad] = []
    chunks = [range(start, min(start + CHUNK, len(reader))) for start in range(0, len(reader), CHUNK)]
    measured = grain.MapDataset.source(chunks).map(functools.partial(measure, reader))
    workers = workers if len(reader) >= FEWEST else 0
    with (
        closing(read_ahead(measured, workers)) as results,
        tqdm(total=len(reader), desc="reading rows", unit=" rows", disable=not progress) as bar,
    ):
        for chunk, (of_chunk, chunk_bad) in zip(chunks, results, strict=True):
            found[:, chunk.start : chunk.stop] = of_chunk
            bad += chunk_bad
            check_bad_rows(bad, max_bad_rows, reader.records)  # at once, not after minutes
            bar.update(len(chunk))
    return _index(found, bad)


def _index(found: np.ndarray, bad: list[Bad]) -> Index:
    text, images, visual = found[:3].astype(np.int32)
    return Index(text, images, visual, bad, found[3].astype(np.uint32))


def measure(reader: Reader, rows: range) -> tuple[np.ndarray, list[Bad]]:
    """int64 [4, rows]: text tokens, images and visual tokens of each, a checksum of its ids and targets; and the bad
    rows among them."""
    found = np.zeros((4, len(rows)), np.int64)
    bad: list[Bad] = []
    for at, row in enumerate(rows):
        try:
            encoded = reader[row]
        except BadRow as error:
            bad.append((row, error.reason))
            continue
        tokens = encoded.image_tokens
        found[:, at] = encoded.text_length, len(tokens), sum(tokens), checksum(encoded)
    return found, bad


def index_key(reader: Reader, path: Path) -> str:
    """Changes with whatever the index depends on: the data, the tokenizer, the limits, and the code that reads."""
    digest = hashlib.sha256()
    digest.update(repr(stamps(path)).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    digest.update(backend.to_str().encode() if backend is not None else pickle.dumps(reader.tokenizer))
    numbers = (len(reader), reader.template.name, reader.tokens_per_image, reader.max_length)
    digest.update(repr(numbers).encode())
    return digest.hexdigest()[:16]


def _read(file: Path) -> Index | None:
    """None where there is none, or one that was cut off."""
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            bad = [(row, reason) for row, reason in json.loads(str(arrays["bad"]))]
            return _index(arrays["found"], bad)
    except (OSError, ValueError, KeyError, EOFError, RecursionError, zipfile.BadZipFile):
        return None


def _write(file: Path, index: Index) -> None:
    unfinished = file.with_name(f"{uuid.uuid4()}.npz")  # of its own: several processes may write the same index
    try:
        found = np.stack(
            [index.text_lengths, index.image_counts, index.visual_lengths, index.checksums], dtype=np.int64
        )
        np.savez(unfinished, found=found, bad=json.dumps(index.bad))
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
