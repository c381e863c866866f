"""python -m benchmarks.loading [--workers 0 1 2] [--out=FILE]: how many rows per second the input pipeline reads.

Rows in the proportions of LLaVA's instruction data: one photo of 640 x 480 pixels (JPEG) and six turns of words. Each
is read, decoded, resized and padded to 336 pixels, tokenised with its answers marked, and laid out with 576 visual
tokens, as train.py has it. Training waits for data where its steps take fewer seconds than their rows do here.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine

SIZE, PATCHES, REGISTERS = 336, 576, 8
PHOTOS, ROWS = 64, 512
TURNS, WORDS = 6, 12  # words of a question, and of an answer
BATCH, WARM_UP, STEPS = 16, 2, 24


def run(workers: list[int], steps: int = STEPS) -> machine.Result:
    with tempfile.TemporaryDirectory() as folder:
        source, indexed = open_batches(Path(folder))
        records = [{"workers": number, **read(source, number, steps)} for number in workers]
        text = int(source.reader[0].ids.size)
    return machine.result("loading", records, indexed_rows_per_second=indexed, text_tokens=text)


def open_batches(folder: Path) -> tuple[Any, float]:
    """What train.py would open, and the rows per second of the pass that measures them."""
    from victor_jax.data.batches import BatchSource  # needs more than the model code
    from victor_jax.data.index import build_index
    from victor_jax.data.labels import Reader
    from victor_jax.data.sample import write_sample
    from victor_jax.data.schedule import Schedule
    from victor_jax.data.sources import open_source
    from victor_jax.data.templates import TEMPLATES
    from victor_jax.weights.tokenizer import open_tokenizer

    write_rows(folder)
    tokenizer = open_tokenizer(write_sample(folder / "sample") / "tokenizer")
    records = open_source(folder / "rows.json", folder)
    reader = Reader(records, TEMPLATES["vicuna_v1"], tokenizer, PATCHES, max_length=2048)
    began = time.perf_counter()
    index = build_index(reader, workers=0, progress=False)
    indexed = len(reader) / (time.perf_counter() - began)
    schedule = Schedule(index, BATCH, 0, REGISTERS, parts=1, rows=np.arange(len(reader)))
    return BatchSource(reader, schedule, REGISTERS, image_size=SIZE, aspect="pad"), indexed


def write_rows(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        write_photo(folder / f"{number}.jpg", rng)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(1000)]
    rows = []
    for number in range(ROWS):
        said = [" ".join(rng.choice(words, WORDS)) for _ in range(2 * TURNS)]
        turns = [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(said)]
        turns[0]["value"] = f"<image>\n{said[0]}"
        rows.append({"id": str(number), "image": f"{number % PHOTOS}.jpg", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))


def write_photo(file: Path, rng: np.random.Generator) -> Path:
    """Noise of large and small grain: it costs a decoder about what photos of scenes do."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    photo = np.clip(np.asarray(coarse) + rng.integers(-12, 13, (480, 640, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(photo).save(file, quality=85)
    return file


def read(source: Any, workers: int, steps: int) -> dict[str, float]:
    """Rows per second, and how long the first batch takes to come: worker processes must start."""
    from victor_jax.data.loader import Loader

    began, arrived = time.perf_counter(), []
    with Loader(source, 0, WARM_UP + steps, workers) as loader:
        for _ in range(WARM_UP + steps):
            next(loader)
            arrived.append(time.perf_counter())
    seconds = arrived[-1] - arrived[WARM_UP - 1]
    return {"rows_per_second": steps * BATCH / seconds, "first_batch_seconds": arrived[0] - began}


def tables(result: machine.Result) -> str:
    """Markdown of a result."""
    rows = []
    for record in result["records"]:
        workers, speed = record["workers"] or "none, 2 threads", record["rows_per_second"]
        row = {"worker processes": workers, "rows/s": speed, "ms per row": 1000 / speed}
        rows.append(row | {"first batch s": record["first_batch_seconds"]})
    foot = (
        f"Each row: a photo of 640 x 480 and {result['text_tokens']} ids. The pass before training, which measures "
        f"text alone: {result['indexed_rows_per_second']:.0f} rows/s in one process."
    )
    return machine.table(rows) + f"\n\n{foot}"


if __name__ == "__main__":
    flags = {"type": int, "nargs": "+", "default": [0, 1, 2], "help": "worker processes"}
    machine.command(__doc__, run, tables, workers=flags)
