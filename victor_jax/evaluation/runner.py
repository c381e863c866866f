"""Asks a model the questions of a benchmark, batch by batch. It can be stopped at any time; all that decides the score
stands beside it.

A folder of results holds settings.json, written before the first answer; answers.jsonl, which grows batch by batch, in
the form of LLaVA's scripts and at the end in the order of the questions; what a server or a judge reads; and
result.json. Several processes answer the batches in turn and send their answers to process 0, which alone reads and
writes that folder: answers are the same however many processes there are.
"""

import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import victor_jax
from victor_jax.analysis.policy import relative_flops
from victor_jax.data.images import BadImage, decode
from victor_jax.data.labels import IMAGE_TEXT
from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score
from victor_jax.evaluation.benchmark import Question, as_published, score
from victor_jax.evaluation.tasks import Task
from victor_jax.files import write_whole
from victor_jax.inference.buckets import Bucketed
from victor_jax.inference.vlm import VLM, Answered
from victor_jax.results import check_settings, keep_settings, read_json, stamp_of, whole_lines, write_json
from victor_jax.sharding.distributed import agreed, receive, send

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "transformers")
ANSWERS, RESULT = "answers.jsonl", "result.json"
NAMED = 5  # of the questions that were not asked
Row = dict[str, Any]  # a line of answers.jsonl


def answers_in(vlm: VLM, task: Task, out: Path) -> int:
    """How many questions have an answer in this folder, in which a run can begin or go on. Needs no weights."""
    check_settings(describe(vlm, task, ""), out, out / ANSWERS)
    return len(_read_rows(out / ANSWERS, task.questions))


def run(vlm: VLM, task: Task, out: str | Path, model: str = "", bar: tqdm | None = None) -> dict[str, Any]:
    """Answers what is not answered yet, which takes weights, and returns what result.json holds. `model`: its name in
    the report. To be called on all processes."""
    out, rows, settings = Path(out), dict[int, Row](), dict[str, Any]()
    if is_first := jax.process_index() == 0:
        settings = describe(vlm, task, model)
        keep_settings(settings, out, out / ANSWERS)
        rows = _read_rows(out / ANSWERS, task.questions)
    asked = [task.benchmark.name, task.digest, task.batch_size, task.max_new_tokens]
    is_done, asked_first = agreed([len(rows) == len(task.questions), asked])
    if asked != asked_first:
        raise UserError("it was given other questions, another batch size or other limits than process 0")
    answered = iter(()) if is_done else _answered(vlm, task, rows)
    if not is_first:
        for batch, of_batch in answered:
            send(_key(task, batch), of_batch)
        return agreed(None)
    if is_done and (out / RESULT).exists():
        settings = read_json(out / RESULT)["settings"]
    else:
        timing = _write(answered, task, rows, out / ANSWERS, bar)
        devices = jax.process_count() * (vlm.mesh.size if vlm.mesh else 1)
        settings |= {"batch_size": task.batch_size, "devices": devices} | timing
    answers = [Answer(row["question_id"], row["text"], row["prompt"]) for _, row in sorted(rows.items())]
    result = result_of(task, answers, out) | {"settings": settings}
    if vlm.method.fork:
        result["chosen"] = chosen(vlm, task, list(rows.values()))
    write_json(out / RESULT, result)
    return agreed(result)


def describe(vlm: VLM, task: Task, model: str) -> dict[str, Any]:
    """All that decides the score. Where one of these has changed, old and new answers do not belong together, except
    for the model's name and the revision."""
    return {
        "model": model,
        "model_files": stamp_of(vlm.folder),
        "compression": vlm.compression,
        "registers": vlm.module.method.registers,
        "template": vlm.prompter.template.name,
        "aspect": vlm.prompter.aspect,
        "dtype": vlm.module.dtype.name,
        "attention": vlm.module.implementation,
        "decoding": {"method": "greedy", "max_new_tokens": task.max_new_tokens},
        "with_images": task.picture is not None,
        "ocr": task.benchmark.ocr,
        "benchmark": task.benchmark.name,
        "questions_sha256": task.digest,
        "device": jax.devices()[0].device_kind,
        "revision": revision(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def revision() -> str:
    """The version of this package, with the commit where it runs from a clone."""
    root = Path(victor_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return victor_jax.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not for this user
        return victor_jax.__version__
    return f"{victor_jax.__version__} ({said})"


def result_of(task: Task, answers: Sequence[Answer], out: Path) -> dict[str, Any]:
    """The score, and what a server or a judge reads."""
    benchmark, submission = task.benchmark, None
    if benchmark.submit and not task.limit:
        with as_published(task.folder, benchmark.name):
            submission = benchmark.submit(answers, task.questions, task.folder, out)
    found = _score(task, answers, out / benchmark.judged if benchmark.judged else task.annotations)
    return {
        "benchmark": benchmark.name,
        "score": found and found.score,
        "unit": found.unit if found else "",
        "full_marks": benchmark.full_marks,
        "parts": found.parts if found else {},
        "questions": found.questions if found else len(answers),
        "missing": len(found.missing) if found else 0,
        "first_missing": ", ".join(map(str, found.missing[:NAMED])) if found else "",
        "judged": benchmark.judged,
        "submission": str(submission.relative_to(out)) if submission else "",
    }


def _score(task: Task, answers: Sequence[Answer], annotations: Path | None) -> Score | None:
    """None where a server scores, or a judge who has not answered yet."""
    if annotations is None or not annotations.exists():
        return None
    questions = task.folder / task.benchmark.questions
    return score(task.benchmark, answers, annotations, questions, partial=task.limit is not None)


def _read_rows(file: Path, questions: Sequence[Question]) -> dict[int, Row]:
    """Those that were written before, by the place of their question."""
    places = {(question.id, question.text): place for place, question in enumerate(questions)}
    rows: dict[int, Row] = {}
    for number, line in enumerate(whole_lines(file), 1):
        try:
            row = json.loads(line)
            place = places[row["question_id"], row["prompt"]]
            if place in rows or not isinstance(row["text"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}, is not the one answer to one of these questions: give another --out"
            ) from None
        rows[place] = row
    return rows


def chosen(vlm: VLM, task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """Of a method that chooses a plan for each row: the share of each, and what was spent to the first token, as a
    share of the dearest plan's FLOPs."""
    prompts, pictures = asked_of(task)
    first = next((place for place, of_row in enumerate(pictures) if of_row), 0)
    flops = relative_flops(vlm, *vlm.prompter.ask(prompts[first : first + 1], pictures[first : first + 1]))
    counts = Counter(row.get("compression") for row in rows)
    shares = {spec: counts[spec] / len(rows) for spec in flops}
    return {"shares": shares, "flops": flops, "spent": sum(flops[spec] * share for spec, share in shares.items())}


def _answered(vlm: VLM, task: Task, rows: Container[int]) -> Iterator[tuple[Bucketed, Answered]]:
    """What the model says, batch by batch, in batches that are the same whenever the run was stopped: on process 0 all
    that are not in `rows` yet, on another process its own of them."""
    asked = vlm.prompter.ask(*asked_of(task))
    batches = vlm.in_buckets(asked, task.batch_size)
    left = agreed([number for number, batch in enumerate(batches) if any(row not in rows for row in batch.rows)])
    processes, me = jax.process_count(), jax.process_index()
    ours = [batches[number] for number in left[me::processes]]
    answers = vlm.generate_batches(asked, ours, task.max_new_tokens, open=partial(open_picture, task))
    for turn, number in enumerate(left):
        if turn % processes == me:
            yield batches[number], next(answers)
        elif me == 0:
            yield batches[number], Answered(*receive(_key(task, batches[number])))


def _key(task: Task, batch: Bucketed) -> str:
    return f"answers/{task.benchmark.name}/{batch.rows[0]}"


def _write(
    answered: Iterator[tuple[Bucketed, Answered]], task: Task, rows: dict[int, Row], file: Path, bar: tqdm | None
) -> dict[str, Any]:
    """Adds what is not in `rows` yet, there and to the file, brings the file into the order of the questions, and says
    how long that took."""
    total, done = len(task.questions), len(rows)
    ended = [time.perf_counter()]
    for batch, of_batch in answered:
        given = {
            place: row_of(task.questions[place], text, compression)
            for place, text, compression in zip(batch.rows, *of_batch, strict=True)
        }
        new = {place: row for place, row in given.items() if place not in rows}
        with open(file, "a", encoding="utf-8") as lines:
            lines.writelines(map(_line, new.values()))
        rows |= new
        ended.append(time.perf_counter())
        if bar is not None:
            bar.set_description(task.benchmark.name, refresh=False)
            bar.update(len(new))
    write_whole(file, "".join(_line(row) for _, row in sorted(rows.items())))
    processes = jax.process_count()
    steady = np.diff(ended[1::processes])  # between batches of this process; the first one compiles
    rate = round(processes * min(task.batch_size, total) / float(np.median(steady)), 3) if steady.size else None
    return {"seconds": round(ended[-1] - ended[0], 3), "answered": total - done, "images_per_second": rate}


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def row_of(question: Question, text: str, compression: str) -> Row:
    """A line of answers.jsonl, as LLaVA's scripts write it, with what the question file says beside the question, and
    the compression by which the answer was found."""
    beside = {"category": question.category, "answer": question.answer, "compression": compression}
    return {"question_id": question.id, "prompt": question.text, "text": text} | {k: v for k, v in beside.items() if v}


def asked_of(task: Task) -> tuple[list[str], list[list[str] | None]]:
    """Prompts, and the names of their pictures."""
    if task.picture is None:
        return [_blind(question.text) for question in task.questions], [None] * len(task.questions)
    return [question.text for question in task.questions], [list(question.images) for question in task.questions]


def _blind(text: str) -> str:
    return text.replace(f"{IMAGE_TEXT}\n", "").replace(IMAGE_TEXT, "")


def open_picture(task: Task, name: str) -> Image.Image:
    assert task.picture is not None
    try:
        return decode(task.picture(name), name)
    except BadImage as error:
        asks = next(question.id for question in task.questions if name in question.images)
        raise UserError(f"question {asks}: {error}") from None
