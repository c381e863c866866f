"""How long each row is: one pass over all records, kept in a file, so that shapes and schedule are known at once."""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from victor_jax.data.labels import encode
from victor_jax.data.records import BadRow, Records, parse_record
from victor_jax.data.sources import stamps
from victor_jax.data.templates import Template
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE

CHUNK = 1024  # rows that a worker measures at once
FEWEST = 8192  # rows of a worker: with fewer, its start takes longer than it saves
SHOWN = 5  # bad rows named in an error

Bad = tuple[int, str]  # row, reason


@dataclass(frozen=True)
class Reader:
    """Record number -> encoded row, cut at the length limit. Picklable."""

    records: Records
    template: Template
    tokenizer: Any
    tokens_per_image: int
    max_length: int  # of text and visual tokens; registers never cost a row its text

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> EncodedRow:
        """Raises BadRow where nothing is supervised."""
        record = parse_record(self.records[row], row)
        encoded = truncate(encode(record, self.template, self.tokenizer, self.tokens_per_image), self.max_length)
        if not (encoded.targets[1:] != IGNORE).any():  # nothing comes before the first, to predict it
            raise BadRow(row, f"nothing within max_length={self.max_length} is supervised")
        return encoded


def truncate(row: EncodedRow, max_length: int) -> EncodedRow:
    """The longest beginning of at most `max_length` text and visual tokens that holds its images whole."""
    is_image = row.ids == IMAGE
    positions = np.ones(len(is_image), np.int64)
    positions[is_image] = row.image_tokens
    kept = int((np.cumsum(positions) <= max_length).sum())
    images = int(is_image[:kept].sum())
    return EncodedRow(row.ids[:kept], row.targets[:kept], row.image_tokens[:images], row.images[:images])


@dataclass(frozen=True)
class Index:
    text_lengths: np.ndarray  # int32 [n]; 0 for a bad row
    image_counts: np.ndarray  # int32 [n]
    visual_lengths: np.ndarray  # int32 [n]: visual tokens of all its images
    bad: list[Bad]


def check_bad_rows(bad: list[Bad], most: int | None, source: Records) -> None:
    """Too many are an error that names the first few."""
    if most is not None and len(bad) > most:
        named = "; ".join(f"{source.describe(row)}: {reason}" for row, reason in bad[:SHOWN])
        raise UserError(
            f"more than data.max_bad_rows={most} rows cannot be used, the first are {named}. Mend the data "
            "(victor-jax check-data lists them) or allow more"
        )


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
    if (index := _read(kept, len(reader))) is None:
        index = build_index(reader, workers, max_bad_rows, progress)
        _write(kept, index)
    check_bad_rows(index.bad, max_bad_rows, reader.records)
    return index


def build_index(reader: Reader, workers: int, max_bad_rows: int | None = None, progress: bool = True) -> Index:
    lengths = np.zeros((3, len(reader)), np.int32)
    bad: list[Bad] = []
    workers = min(workers, len(reader) // FEWEST)
    chunks = [range(start, min(start + CHUNK, len(reader))) for start in range(0, len(reader), CHUNK)]
    with (
        tqdm(total=len(reader), desc="reading rows", unit=" rows", disable=not progress) as bar,
        spread(measure, reader, chunks, workers) as measured,
    ):
        for chunk, (of_chunk, chunk_bad) in zip(chunks, measured, strict=True):
            lengths[:, chunk.start : chunk.stop] = of_chunk
            bad += chunk_bad
            check_bad_rows(bad, max_bad_rows, reader.records)  # at once, not after minutes
            bar.update(len(chunk))
    return Index(lengths[0], lengths[1], lengths[2], bad)


def measure(reader: Reader, rows: range) -> tuple[np.ndarray, list[Bad]]:
    """int32 [3, rows]: text tokens, images and visual tokens of each; and the bad rows among them."""
    lengths = np.zeros((3, len(rows)), np.int32)
    bad: list[Bad] = []
    for at, row in enumerate(rows):
        try:
            encoded = reader[row]
        except BadRow as error:
            bad.append((row, error.reason))
            continue
        lengths[:, at] = encoded.text_length, len(encoded.image_tokens), sum(encoded.image_tokens)
    return lengths, bad


@contextmanager
def spread(work: Callable[[Any, Any], Any], shared: Any, parts: list[Any], workers: int) -> Iterator[Iterator[Any]]:
    """work(shared, part) of each part, in order, over worker processes if there are at least two."""
    if workers < 2:
        yield (work(shared, part) for part in parts)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker, (work, shared))
    try:
        yield pool.map(_work, parts)
    finally:
        pool.shutdown(cancel_futures=True)


_given: list[Any] = []  # of a worker process: the function, what it shares


def _begin_worker(work: Callable[[Any, Any], Any], shared: Any) -> None:
    _given[:] = [work, shared]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _work(part: Any) -> Any:
    work, shared = _given
    return work(shared, part)


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


def _read(file: Path, rows: int) -> Index | None:
    """None where there is none, or one that was cut off."""
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            bad = [(row, reason) for row, reason in json.loads(arrays["bad"].tobytes())]
            text, images, visual = arrays["lengths"]
            index = Index(text, images, visual, bad)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if len(index.text_lengths) == rows else None


def _write(file: Path, index: Index) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: several processes may write the same one.
    handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                lengths=np.stack([index.text_lengths, index.image_counts, index.visual_lengths]),
                bad=np.frombuffer(json.dumps(index.bad).encode(), np.uint8),
            )
        os.replace(unfinished, file)
    finally:
        Path(unfinished).unlink(missing_ok=True)
