"""victor-jax train-policy --model=DIR --compression=SPEC --data=FILE --images=DIR --out=DIR: how a method chooses.

For methods that choose a plan for each row when they answer (docs/methods.md names them). Every plan is tried on the
first answer of each row, in the form that training reads; which of them did as well as the largest, and the states that
the choice looks at, are kept in OUT, so that the same command goes on after a stop. Then what chooses is trained on
them, which takes seconds, and OUT/model is the model with it. The model itself is not changed.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from victor_jax.analysis import policy
from victor_jax.cli.rows import with_image
from victor_jax.compile_cache import use_compile_cache
from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse
from victor_jax.data.images import BadImage
from victor_jax.data.records import Record
from victor_jax.data.sources import stamps
from victor_jax.errors import UserError
from victor_jax.files import writing
from victor_jax.inference.buckets import Bucketed
from victor_jax.inference.prompts import Prompter, open_prompter
from victor_jax.inference.vlm import VLM, load
from victor_jax.limits import check_whole
from victor_jax.models.sequence import EncodedRow
from victor_jax.results import check_settings, keep_settings, stamp_of, whole_lines
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

LINES, FEATURES, MODEL = "labels.jsonl", "features.f32", "model"


class Rows(NamedTuple):
    numbers: list[int]  # of the data
    encoded: list[EncodedRow]
    open: Callable[[Any], Any]  # a picture by its name


def main(arguments: list[str]) -> int:
    given = _parse(arguments)
    for name in ("limit", "batch_size", "steps"):
        check_whole(f"--{name.replace('_', '-')}", getattr(given, name))
    if not 0 < given.held_out < 1 or not 0 < given.learning_rate < np.inf:
        raise UserError(f"--held-out={given.held_out} must be a share of the rows, --learning-rate above 0")
    checkpoint = open_checkpoint(given.model)
    config, spec = checkpoint.config, given.compression or checkpoint.compression
    method = parse(spec, config)
    if method.fork is None:
        raise UserError(f"{method.spec} chooses nothing: give a --compression that does (docs/methods.md names them)")
    fresh.with_own(checkpoint, replace(method, fork=None), None)  # all but what chooses has been trained, or it is said
    if (given.out / MODEL).exists():
        raise UserError(f"{given.out / MODEL} is there already: give another --out, or move it away")
    prompter = open_prompter(checkpoint.folder, checkpoint.prompt, config, method.tokens_per_image(config))
    rows = read_rows(given.data, given.images, given.limit, prompter)
    settings = _settings(given, method, prompter, checkpoint.folder)
    check_settings(settings, given.out, given.out / LINES)
    use_compile_cache()
    vlm = load(given.model, spec, given.dtype, attention=given.attention, seed=given.seed)
    keep_settings(settings, given.out, given.out / LINES)
    order, tried = _tried(vlm, rows, given)
    say(report(vlm, *learn(vlm, checkpoint, order, tried, given), policy.relative_flops(vlm, rows.encoded[0])))
    say(f"wrote {given.out / MODEL}")
    return 0


def read_rows(data: str, images: str | None, limit: int, prompter: Prompter) -> Rows:
    """The first question and answer of the first rows with an image."""

    def read(record: Record, _: Any) -> EncodedRow:
        question, answer = (turn.text for turn in record.turns[:2])
        return prompter.answer([question], [list(record.images)], [answer])[0]

    found, records = with_image(data, images, limit, read)
    if len(found) < 2:
        raise UserError(f"{data} has {len(found)} rows with an image: one to learn from and one to try are the least")

    def open_picture(name: Any) -> Any:
        try:
            return records.open(name)
        except BadImage as error:
            raise UserError(f"an image of {data}: {error}") from None

    return Rows(list(found), list(found.values()), open_picture)


def _tried(vlm: VLM, rows: Rows, given: Any) -> tuple[list[int], policy.Tried]:
    """Which rows, and what every plan made of them: read where it was found before, batch by batch."""
    lines, file = given.out / LINES, given.out / FEATURES
    width = (len(policy.fork_of(vlm.method).forks), 2 * vlm.config.language.width)
    batches = vlm.in_buckets(rows.encoded, given.batch_size)
    order = [row for batch in batches for row in batch.rows]
    found = list(_lines(lines, [rows.numbers[row] for row in order], len(policy.fork_of(vlm.method).ends)))
    with writing(given.out), open(file, "ab") as kept:
        size = 4 * len(found) * width[0] * width[1]
        if kept.tell() < size:
            raise UserError(f"{file} is shorter than {lines} says: give another --out")
        kept.truncate(size)  # what a stop left behind the last line
        features = [np.fromfile(file, np.float32).reshape(-1, *width)]
        with tqdm(total=len(order), initial=len(found), unit="row") as bar:
            for batch in _left(batches, len(found)):
                tried = policy.try_plans(vlm, *vlm.read(_rows(rows, batch), batch.shape, batch.pictures, rows.open))
                tried = policy.Tried(*(array[: len(batch.rows)] for array in tried))
                tried.features.tofile(kept)
                kept.flush()
                new = [
                    {"row": rows.numbers[row], "log_probability": score, "agreeing": agreeing, "length": length}
                    for row, score, agreeing, length in zip(
                        batch.rows, *(array.tolist() for array in tried[:3]), strict=True
                    )
                ]
                with open(lines, "a", encoding="utf-8") as file_of_lines:
                    file_of_lines.writelines(json.dumps(line) + "\n" for line in new)
                found += new
                features.append(tried.features)
                bar.update(len(new))
    scores, agreeing, lengths = (
        np.array([line[key] for line in found], kind)
        for key, kind in (("log_probability", np.float32), ("agreeing", np.int32), ("length", np.int32))
    )
    return order, policy.Tried(scores, agreeing, lengths, np.concatenate(features))


def _rows(rows: Rows, batch: Bucketed) -> list[EncodedRow]:
    return [rows.encoded[row] for row in batch.filled]


def _left(batches: list[Bucketed], done: int) -> Iterator[Bucketed]:
    """The batches, of which so many rows are done; one that was written in part is done again from there."""
    for batch in batches:
        if done < len(batch.rows):
            yield replace(batch, rows=batch.rows[done:])
        done = max(done - len(batch.rows), 0)


def _lines(file: Path, numbers: list[int], plans: int) -> Iterator[dict[str, Any]]:
    for place, (line, number) in enumerate(zip(whole_lines(file), numbers, strict=False), 1):
        try:
            row = json.loads(line)
            if row["row"] != number or len(row["log_probability"]) != plans or len(row["agreeing"]) != plans:
                raise ValueError
            yield {key: row[key] for key in ("row", "log_probability", "agreeing", "length")}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {place}, is not about row {number} of the data: give another --out"
            ) from None


def learn(
    vlm: VLM, checkpoint: Checkpoint, order: list[int], tried: policy.Tried, given: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Trains on most rows and writes the model -> of the others, bool [rows, plans], which plans do as well as the
    largest, and int [rows], which is chosen."""
    does = policy.kept(vlm.method, tried)
    right = policy.right_branches(vlm.method, does)
    shuffled = np.random.default_rng(given.seed).permutation(len(order))
    count = min(max(round(given.held_out * len(order)), 1), len(order) - 1)
    others, mine = shuffled[:count], shuffled[count:]
    names = fresh.chooser_of(vlm.config, vlm.method)
    trained = policy.train(vlm, names, tried.features[mine], right[mine], given.steps, given.learning_rate, given.seed)
    taught = replace(vlm, params=vlm.params | trained)
    tensors = fresh.with_own(checkpoint, vlm.method, given.seed)
    tensors |= {name: from_array(np.asarray(array)) for name, array in trained.items()}
    write_checkpoint(replace(checkpoint, tensors=tensors, compression=vlm.compression), given.out / MODEL, "orbax")
    return does[others], policy.chosen_plans(vlm.method, policy.choose(taught, tried.features[others]))


def report(vlm: VLM, does: np.ndarray, chosen: np.ndarray, flops: dict[str, float]) -> str:
    """Of rows that were not learned from."""
    fork = policy.fork_of(vlm.method)
    cost = np.array([flops[end.spec] for end in fork.ends])
    right, rows = does.argmax(axis=1), np.arange(len(does))
    width = max(len(end.spec) for end in fork.ends)
    lines = [f"{'of rows not learned from':<{width}}  FLOPs  does as well  is right  is chosen"]
    lines += [
        f"{end.spec:<{width}}  {cost[i]:5.2f}  {does[:, i].mean():12.1%}  {(right == i).mean():8.1%}  "
        f"{(chosen == i).mean():9.1%}"
        for i, end in enumerate(fork.ends)
    ]
    lines.append(
        f"{len(does)} rows: what is chosen does as well as {fork.ends[-1].spec} for {does[rows, chosen].mean():.1%}, "
        f"at {cost[chosen].mean():.2f} of its FLOPs to the first token; what is right takes {cost[right].mean():.2f}"
    )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, flush=True)


def _settings(given: Any, method: Method, prompter: Prompter, folder: Path) -> dict[str, Any]:
    """All that decides what is found of a row."""
    return {
        "model": given.model,
        "model_files": stamp_of(folder),
        "compression": method.spec,
        "dtype": given.dtype,
        "attention": given.attention,
        "template": prompter.template.name,
        "aspect": prompter.aspect,
        "data": hashlib.sha256(repr(stamps(Path(given.data))).encode()).hexdigest()[:16],
        "limit": given.limit,
        "batch_size": given.batch_size,
    }


def _parse(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="victor-jax train-policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a checkpoint folder of any known format, with its tokenizer")
    parser.add_argument("--compression", help="the one that chooses, where the model was trained with another")
    parser.add_argument("--data", required=True, metavar="FILE", help="questions and answers, as training reads them")
    parser.add_argument("--images", metavar="DIR", help="the folder that the images are in")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path)
    parser.add_argument("--limit", type=int, default=6000, help="rows at most, the first (default: 6000)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the rows to try it on (default: 0.1)")
    parser.add_argument("--steps", type=int, default=500, help="of 128 rows (default: 500)")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto")
    return parser.parse_args(arguments)
