"""Asks a model the questions of a benchmark, batch by batch. It can be stopped at any time; all that decides the score
stands beside it.

A folder of results holds settings.json, written before the first answer; answers.jsonl, which grows batch by batch, in
the form of LLaVA's scripts; and after the last answer what a server or a judge reads, and result.json. Several
processes answer the batches in turn and send their answers to process 0, which alone reads and writes that folder:
answers are the same, in the same order, however many processes there are.
"""

import json
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import victor_jax
from victor_jax.data.images import BadImage, decode
from victor_jax.data.labels import IMAGE_TEXT
from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score
from victor_jax.evaluation.benchmark import Question, score
from victor_jax.evaluation.tasks import Task
from victor_jax.inference.buckets import Bucketed, room_for
from victor_jax.inference.vlm import VLM
from victor_jax.results import check_settings, keep_settings, read_json, stamp_of, whole_lines, write_json
from victor_jax.sharding.distributed import agreed, receive, send

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "transformers")
ANSWERS, RESULT = "answers.jsonl", "result.json"
NAMED = 5  # of the questions that were not asked


def check(vlm: VLM, task: Task, out: Path) -> None:
    """Whether a run can begin in this folder, or go on there. Needs no weights."""
    check_settings(describe(vlm, task, ""), out, out / ANSWERS)
    _read_answers(out / ANSWERS, task.questions)


def run(vlm: VLM, task: Task, out: str | Path, model: str = "") -> dict[str, Any]:
    """Answers what is not answered yet, and returns what result.json holds. `model`: its name in the report. To be
    called on all processes."""
    out, answers, settings = Path(out), list[Answer](), dict[str, Any]()
    if is_first := jax.process_index() == 0:
        settings = describe(vlm, task, model)
        keep_settings(settings, out, out / ANSWERS)
        answers = _read_answers(out / ANSWERS, task.questions)
    asked = [task.benchmark.name, task.digest, task.batch_size, task.max_new_tokens]
    done, asked_first = agreed([len(answers), asked])
    if asked != asked_first:
        raise UserError("it was given other questions, another batch size or other limits than process 0")
    texts = _texts(vlm, task, done)
    if not is_first:
        for start, of_batch in texts:
            send(f"answers/{task.benchmark.name}/{start}", of_batch)
        return agreed(None)
    if done == len(task.questions) and (out / RESULT).exists():
        settings = read_json(out / RESULT)["settings"]
    else:
        timing = _write(texts, task, answers, out / ANSWERS)
        devices = jax.process_count() * (vlm.mesh.size if vlm.mesh else 1)
        settings |= {"batch_size": task.batch_size, "devices": devices} | timing
    result = result_of(task, answers, out) | {"settings": settings}
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


def _read_answers(file: Path, questions: Sequence[Question]) -> list[Answer]:
    """Those that were given before."""
    lines, answers = whole_lines(file), []
    if len(lines) > len(questions):
        raise UserError(f"{file} has {len(lines)} answers to {len(questions)} questions: give another --out")
    for number, (line, question) in enumerate(zip(lines, questions, strict=False), 1):
        try:
            row = json.loads(line)
            if (row["question_id"], row["prompt"]) != (question.id, question.text) or not isinstance(row["text"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}, is not the answer to question {question.id}: give another --out"
            ) from None
        answers.append(Answer(question.id, row["text"], question.text))
    return answers


def _texts(vlm: VLM, task: Task, done: int) -> Iterator[tuple[int, list[str]]]:
    """The first question of each batch that is not answered yet, and what the model says: on process 0 all batches in
    order, on another one its own. Batches begin at the same questions whenever the run was stopped."""
    total, size, processes, me = len(task.questions), task.batch_size, jax.process_count(), jax.process_index()
    starts = range(done // size * size if done < total else total, total, size)
    asked = vlm.prompter.ask(*_asked(task))
    first, most = min(size, total), room_for(asked)
    batches = [Bucketed(tuple(range(start, min(start + size, total))), first, most, None) for start in starts]
    answers = vlm.generate_batches(asked, batches[me::processes], task.max_new_tokens, open=partial(_open, task))
    for number, start in enumerate(starts):
        if number % processes == me:
            yield start, next(answers).texts
        elif me == 0:
            yield start, receive(f"answers/{task.benchmark.name}/{start}")


def _write(texts: Iterator[tuple[int, list[str]]], task: Task, answers: list[Answer], file: Path) -> dict[str, Any]:
    """Adds what is not in `answers` yet, there and to the file, and says how long that took."""
    total, size, done = len(task.questions), task.batch_size, len(answers)
    ended = [time.perf_counter()]
    with tqdm(total=total, initial=done, desc=task.benchmark.name, unit="question", mininterval=0.5) as bar:
        bar.set_postfix_str("compiling")
        for start, of_batch in texts:
            known, questions = max(done - start, 0), task.questions[start : start + size]
            new = list(map(row_of, questions, of_batch))[known:]  # without fillers
            with open(file, "a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            answers += [Answer(row["question_id"], row["text"], row["prompt"]) for row in new]
            bar.set_postfix_str("", refresh=False)
            bar.update(len(new))
            ended.append(time.perf_counter())
    processes = jax.process_count()
    steady = np.diff(ended[1::processes])  # between batches of this process; the first one compiles
    rate = round(processes * min(size, total) / float(np.median(steady)), 3) if steady.size else None
    return {"seconds": round(ended[-1] - ended[0], 3), "answered": total - done, "images_per_second": rate}


def row_of(question: Question, text: str) -> dict[str, Any]:
    """A line of answers.jsonl, as LLaVA's scripts write it, with what the question file says beside the question."""
    beside = {"category": question.category, "answer": question.answer}
    return {"question_id": question.id, "prompt": question.text, "text": text} | {k: v for k, v in beside.items() if v}


def _asked(task: Task) -> tuple[list[str], list[list[str] | None]]:
    """Prompts, and the names of their pictures."""
    if task.picture is None:
        return [_blind(question.text) for question in task.questions], [None] * len(task.questions)
    return [question.text for question in task.questions], [list(question.images) for question in task.questions]


def _blind(text: str) -> str:
    return text.replace(f"{IMAGE_TEXT}\n", "").replace(IMAGE_TEXT, "")


def _open(task: Task, name: str) -> Image.Image:
    assert task.picture is not None
    try:
        return decode(task.picture(name), name)
    except BadImage as error:
        asks = next(question.id for question in task.questions if name in question.images)
        raise UserError(f"question {asks}: {error}") from None
