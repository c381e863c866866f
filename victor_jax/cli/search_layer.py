"""victor-jax search-layer --model=DIR --questions=FILE --images=DIR [--out=DIR]: where the visual tokens can leave.

The layer search of visual tokens withdrawal (Lin et al., arXiv 2405.05803). How far is the first word of an answer from
the full model's, if the visual tokens leave at a layer? That is KL(withdrawn || full), the mean over the first
questions with an image. The smallest layer that stays within the threshold is named, with the compression to use. A
model with registers is searched with them: they stay. OUT keeps what was computed, so that the same command goes on
after a stop, and gets the curve as curve.png.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from victor_jax.analysis.layer_search import cut_of, divergences
from victor_jax.cli.rows import with_image
from victor_jax.compile_cache import use_compile_cache
from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse, with_cut
from victor_jax.data.records import Record
from victor_jax.data.sources import stamps
from victor_jax.errors import UserError
from victor_jax.files import writing
from victor_jax.inference.buckets import room_for
from victor_jax.inference.prompts import Prompter, open_prompter
from victor_jax.inference.vlm import VLM, load
from victor_jax.limits import check_whole
from victor_jax.models.sequence import EncodedRow
from victor_jax.results import check_settings, keep_settings, stamp_of, whole_lines
from victor_jax.weights.read import open_checkpoint

LINES, CURVE = "divergences.jsonl", "curve.png"
FAINT, DARK, MARKED = "#9ca3af", "#1f2937", "#b91c1c"
LEAST = 1e-8  # the foot of the curve: float32 rounds the rest


class Sample(NamedTuple):
    row: int  # of the questions
    question: str
    encoded: EncodedRow


def main(arguments: list[str]) -> int:
    """The exit status: 1 where no layer stays within the threshold."""
    given = _parse(arguments)
    if not 0 <= given.threshold < math.inf:
        raise UserError(f"--threshold={given.threshold} must be a number from 0: a divergence is never negative")
    check_whole("--limit", given.limit)
    checkpoint = open_checkpoint(given.model)
    config, spec = checkpoint.config, given.compression or checkpoint.compression
    layers = _layers(given.first, given.last, config.language.depth)
    methods = {layer: parse(with_cut(spec, layer), config) for layer in layers}
    method = methods[layers[0]]
    cut_of(method)
    prompter = open_prompter(checkpoint.folder, checkpoint.prompt, config, method.tokens_per_image(config))
    samples = read_samples(given.questions, given.images, given.limit, prompter)
    settings = _settings(given, method, layers, prompter, checkpoint.folder)
    found: list[list[float]] = []
    if given.out:
        check_settings(settings, given.out, given.out / LINES)
        found = read_lines(given.out / LINES, samples, layers)
    if len(found) < len(samples):
        use_compile_cache()
        vlm = load(given.model, with_cut(spec, config.language.depth), given.dtype, attention=given.attention)
        if given.out:
            keep_settings(settings, given.out, given.out / LINES)
        found += _computed(vlm, method, layers, samples, len(found), given.out)
    table = np.array(found)
    chosen = smallest(table, layers, given.threshold)
    print(report(table, layers, given.threshold, None if chosen is None else methods[chosen]))
    if given.out:
        _save(curve(table, layers, given.threshold, chosen, Path(given.model).name), given.out / CURVE)
    return 0 if chosen is not None else 1


def read_samples(questions: str, images: str | None, limit: int, prompter: Prompter) -> list[Sample]:
    """The first turns of the first rows with an image, asked as `generate` asks; their pictures are opened."""

    def read(record: Record, records: Any) -> tuple[str, EncodedRow]:
        pictures, question = [records.open(name) for name in record.images], record.turns[0].text
        return question, prompter.ask([question], [pictures])[0]

    found, _ = with_image(questions, images, limit, read)
    if not found:
        raise UserError(f"{questions} asks about no image: a search needs questions with one")
    return [Sample(row, *of_row) for row, of_row in found.items()]


def read_lines(file: Path, samples: list[Sample], layers: range) -> list[list[float]]:
    """The divergences that were computed before."""
    found = []
    for number, (line, sample) in enumerate(zip(whole_lines(file), samples, strict=False), 1):
        try:
            row = json.loads(line)
            if row["row"] != sample.row or row["question"] != sample.question:
                raise ValueError
            if len(values := [float(value) for value in row["divergences"]]) != len(layers):
                raise ValueError
            found.append(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}, is not this search's of question {sample.row}: give another --out"
            ) from None
    return found


def smallest(table: np.ndarray, layers: range, threshold: float) -> int | None:
    """table [samples, layers] -> the smallest layer whose mean is within the threshold, as the authors choose it."""
    within = np.flatnonzero(table.mean(axis=0) <= threshold)
    return layers[within[0]] if len(within) else None


def report(table: np.ndarray, layers: range, threshold: float, chosen: Method | None) -> str:
    mean, most = table.mean(axis=0), table.max(axis=0)
    lines = [f"KL(withdrawn || full) after the prompt, questions: {len(table)}", "layer      mean   largest"]
    lines += [f"{layer:5}  {a:8.5f}  {b:8.5f}" for layer, a, b in zip(layers, mean, most, strict=True)]
    if chosen:
        return "\n".join([*lines, f"the smallest layer within {threshold:g}: --compression={chosen.spec}"])
    least = int(mean.argmin())
    return "\n".join([*lines, f"no layer is within {threshold:g}: the nearest is {layers[least]} at {mean[least]:.5f}"])


def curve(table: np.ndarray, layers: range, threshold: float, chosen: int | None, model: str) -> Figure:
    """The mean over the samples by layer, and faintly each sample."""
    figure = Figure(figsize=(7, 4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    shown = np.maximum(table, LEAST)
    axes.plot(layers, shown.T, color=FAINT, linewidth=0.6, alpha=0.5)
    axes.plot(layers, np.maximum(table.mean(axis=0), LEAST), color=DARK, marker=".", label="mean")
    axes.axhline(threshold, color=MARKED, linewidth=1, linestyle="--", label=f"threshold {threshold:g}")
    if chosen is not None:
        axes.axvline(chosen, color=MARKED, linewidth=1, label=f"layer {chosen}")
    axes.set_yscale("log")
    axes.set_xlabel("layer at which the visual tokens leave")
    axes.set_ylabel("KL(withdrawn || full)")
    axes.set_title(f"{model}, questions: {len(table)}", loc="left", fontsize=11, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _computed(
    vlm: VLM, method: Method, layers: range, samples: list[Sample], done: int, out: Path | None
) -> Iterator[list[float]]:
    """Of the samples that are not done; each is written before the next begins. One shape, so one program, for all."""
    shape = room_for([sample.encoded for sample in samples])
    sizes = method.plan.sizes(shape.counts(method.registers))
    for sample in tqdm(samples[done:], initial=done, total=len(samples), unit="question"):
        batch = vlm.prompter.batch([sample.encoded], method.registers, shape)
        (found,) = divergences(vlm, method, layers, batch, sizes).tolist()
        if not np.isfinite(found).all():
            raise UserError(f"the logits of question {sample.row} overflow in {vlm.module.dtype}: give --dtype=float32")
        if out:
            line = {"row": sample.row, "question": sample.question, "divergences": found}
            with writing(out), open(out / LINES, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        yield found


def _settings(given: Any, method: Method, layers: range, prompter: Prompter, folder: Path) -> dict[str, Any]:
    """All that decides a divergence. The threshold does not, nor does the number of questions."""
    return {
        "model": given.model,
        "model_files": stamp_of(folder),
        "compression": method.spec,
        "layers": [layers[0], layers[-1]],
        "dtype": given.dtype,
        "attention": given.attention,
        "template": prompter.template.name,
        "aspect": prompter.aspect,
        "questions": hashlib.sha256(repr(stamps(Path(given.questions))).encode()).hexdigest()[:16],
    }


def _layers(first: int, last: int | None, depth: int) -> range:
    last = depth - 1 if last is None else last
    if not 0 <= first <= last < depth:
        raise UserError(
            f"--first={first} and --last={last} must be layers of the language tower, which has 0 to {depth - 1}, and "
            "the first not above the last"
        )
    return range(first, last + 1)


def _save(figure: Figure, file: Path) -> None:
    try:
        figure.savefig(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    print(f"wrote {file}")


def _parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="victor-jax search-layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a checkpoint folder of any known format, with its tokenizer")
    parser.add_argument("--questions", required=True, metavar="FILE", help="of any format that training reads")
    parser.add_argument("--images", metavar="DIR", help="the folder that the questions' images are in")
    parser.add_argument("--threshold", type=float, default=0.003, help="the authors' for LLaVA-1.5-7B (default: 0.003)")
    parser.add_argument("--limit", type=int, default=20, help="questions at most (default: 20)")
    parser.add_argument("--first", type=int, default=5, help="the lowest layer that is tried (default: 5)")
    parser.add_argument("--last", type=int, help="the highest (default: the top layer)")
    parser.add_argument("--out", metavar="DIR", type=Path)
    parser.add_argument("--compression", help="whose layer is searched, instead of the model's own")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto")
    return parser.parse_args(arguments)
