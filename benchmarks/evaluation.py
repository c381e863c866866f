"""python -m benchmarks.evaluation [--model=FOLDER] [--questions=48] [--out=FILE]: questions about pictures per second.

The same questions, asked of the same weights in one process: one by one of Hugging Face's model, as LLaVA's scripts do,
and by `VLM.generate`. All that lies between image files and texts is timed; both read the next picture meanwhile. By
default the model is the small one of the `cpu` preset with random weights. Needs torch. For a GPU:

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.evaluation --model=llava-1.5-7b-hf --dtype=bfloat16 \\
        --questions=960 --out=benchmarks/results/evaluation-7b.json
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.loading import write_photo
from benchmarks.shapes import PRESETS
from victor_jax.models.config import VLMConfig

SPECS = ("full", "victor:registers=8,layer=3")
BATCH, NEW_TOKENS = 16, 16
PER_PICTURE = 6  # questions, as POPE asks
SHORT = "Is there a bus in the picture?\nAnswer the question using a single word or phrase."
LONG = f"{SHORT}\nReference OCR token: {', '.join(f'WORD {number}' for number in range(30))}"  # as TextVQA gives


def run(
    model: str | None,
    questions: int,
    dtype: str,
    config: VLMConfig = PRESETS["cpu"].config,
    specs: tuple[str, ...] = SPECS,
    new_tokens: int = NEW_TOKENS,
) -> machine.Result:
    import victor_jax  # needs more than the model code
    from benchmarks.peers import one_by_one  # needs torch

    with tempfile.TemporaryDirectory() as folder:
        prompts, pictures = write_questions(Path(folder), questions)
        path = Path(model) if model else write_model(Path(folder), config)
        ask = one_by_one(path, dtype, new_tokens)
        ask(prompts[:1], pictures[:1])  # warms up
        texts, seconds = timed(partial(ask, prompts, pictures))
        records: list[dict[str, Any]] = [{"name": "transformers, one by one", "seconds": seconds}]
        for spec in specs:
            answer = partial(victor_jax.load(path, spec, dtype, seed=0).generate, prompts, pictures, new_tokens, BATCH)
            _, first = timed(answer)
            said, seconds = timed(answer)
            records.append({"name": spec, "seconds": seconds, "first_seconds": first})
            if spec == "full":
                records[-1]["same"] = float(np.mean([one == other for one, other in zip(said, texts, strict=True)]))
    more = {"model": model or "small", "dtype": dtype, "batch": BATCH, "new_tokens": new_tokens}
    return machine.result("evaluation", records, questions=questions, **more)


def timed(answer: Callable[[], list[str]]) -> tuple[list[str], float]:
    """What it says, and the seconds that it took."""
    began = time.perf_counter()
    return answer(), time.perf_counter() - began


def write_questions(folder: Path, count: int) -> tuple[list[str], list[Path]]:
    """Six of each photo, in random order; one of six is long."""
    rng = np.random.default_rng(0)
    photos = [write_photo(folder / f"{number}.jpg", rng) for number in range(-(-count // PER_PICTURE))]
    order = rng.permutation(count)
    prompts = [SHORT if number % PER_PICTURE else LONG for number in order]
    return prompts, [photos[number // PER_PICTURE] for number in order]


def write_model(folder: Path, config: VLMConfig) -> Path:
    """Random weights and a small tokenizer, as Hugging Face's classes read them."""
    from victor_jax.data.sample import write_sample
    from victor_jax.weights import fresh
    from victor_jax.weights.tokenizer import open_tokenizer
    from victor_jax.weights.write import write_checkpoint

    tokenizer = write_sample(folder / "sample") / "tokenizer"
    words = len(open_tokenizer(tokenizer))  # the writer adds the image token after them
    config = replace(config, image_token=words, pad_token=0, language=replace(config.language, vocabulary=words))
    write_checkpoint(replace(fresh.checkpoint(config, seed=0), folder=tokenizer), folder / "model", "hf")
    return folder / "model"


def tables(result: machine.Result) -> str:
    """Markdown of a result."""
    rows, count, theirs = [], result["questions"], result["records"][0]["seconds"]
    for record in result["records"]:
        seconds = record["seconds"]
        row = {"": record["name"], "questions/s": count / seconds, "speed-up": theirs / seconds, "seconds": seconds}
        row["first run, which compiles, s"] = record.get("first_seconds", "")
        row["same answers as transformers"] = record.get("same", "")
        rows.append(row)
    foot = (
        f"{count} questions, {PER_PICTURE} about each photo of 640 x 480, one of them long; answers of at most "
        f"{result['new_tokens']} tokens, ours in batches of {result['batch']}; {result['model']}, {result['dtype']}."
    )
    return f"{machine.table(rows)}\n\n{foot}"


if __name__ == "__main__":
    machine.command(
        __doc__,
        run,
        tables,
        model={"metavar": "FOLDER", "help": "of Hugging Face's layout, with tokenizer and processor"},
        questions={"type": int, "default": 48},
        dtype={"default": "float32"},
    )
