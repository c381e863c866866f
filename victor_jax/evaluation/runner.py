"""Runs a benchmark batch by batch. It can be stopped at any time; all that decides the score stands beside it.

A folder of results holds settings.json, written before the first answer; answers.jsonl, which grows batch by batch;
and result.json, written after the last. Several processes answer the batches in turn and send their answers to process
0, which alone reads and writes that folder: answers are the same, in the same order, however many processes there are.
"""

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from victor_jax.data.images import BadImage, ImageFolder
from victor_jax.errors import UserError, join_names
from victor_jax.evaluation.benchmark import Benchmark, Judged, Question
from victor_jax.inference.vlm import VLM
from victor_jax.results import keep_settings, read_json, stamp_of, whole_lines, write_json
from victor_jax.sharding.distributed import agreed, receive, send

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "transformers")


@dataclass(frozen=True)
class Task:
    """Everything about an evaluation but the model."""

    benchmark: Benchmark
    questions: tuple[Question, ...]
    digest: str  # of the question file
    images: ImageFolder | None  # None: blind, the questions are asked without their images
    batch_size: int
    max_new_tokens: int


def open_task(
    benchmark: Benchmark,
    questions: str | Path,
    images: str | Path | None,
    *,
    blind: bool = False,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
) -> Task:
    """Checks all of it, before any weight is read."""
    asked = benchmark.read(Path(questions))
    digest = hashlib.sha256(Path(questions).read_bytes()).hexdigest()
    named = list(dict.fromkeys(question.image for question in asked if question.image))
    folder = None
    if named and not blind:
        if images is None:
            raise UserError(f"{questions} asks about images: give their folder, or ask without them (--blind)")
        folder = ImageFolder(images)
        if absent := [name for name in named if not (folder.folder / name).is_file()]:
            raise UserError(f"{folder.folder} lacks {len(absent)} of {len(named)} images: {join_names(absent)}")
    if max_new_tokens is None:
        max_new_tokens = benchmark.max_new_tokens
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    return Task(benchmark, tuple(asked), digest, folder, batch_size, max_new_tokens)


def run(vlm: VLM, task: Task, out: str | Path, model: str = "") -> dict[str, Any]:
    """Answers what is not answered yet, and returns what result.json holds. `model`: its name in the report. To be
    called on all processes."""
    out, judged, result, settings = Path(out), list[Judged](), None, dict[str, Any]()
    if is_first := jax.process_index() == 0:
        settings = describe(vlm, task, model)
        keep_settings(settings, out, out / "answers.jsonl")
        judged = _read_answers(out / "answers.jsonl", task.questions)
        if (out / "result.json").exists() and len(judged) == len(task.questions):
            result = read_json(out / "result.json")
    asked = [task.digest, task.batch_size, task.max_new_tokens]
    done, result, asked_first = agreed([len(judged), result, asked])
    if asked != asked_first:
        raise UserError("it was given other questions, another batch size or other limits than process 0")
    if result is not None:
        return result
    texts = _texts(vlm, task, done)
    if is_first:
        timing = _write(texts, task, judged, out / "answers.jsonl")
        devices = jax.process_count() * (vlm.mesh.size if vlm.mesh else 1)
        result = {
            "benchmark": task.benchmark.name,
            **task.benchmark.summarise(judged),
            "questions": len(task.questions),
            "settings": settings | {"batch_size": task.batch_size, "devices": devices} | timing,
        }
        write_json(out / "result.json", result)
    else:
        for start, of_batch in texts:
            send(f"answers/{start}", of_batch)
    return agreed(result)


def describe(vlm: VLM, task: Task, model: str) -> dict[str, Any]:
    """All that decides the score. Where one of these has changed, old and new answers do not belong together."""
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
        "with_images": task.images is not None,
        "benchmark": task.benchmark.name,
        "questions_sha256": task.digest,
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def report(result: dict[str, Any]) -> str:
    """For people: the score, by category, and how it was measured."""
    settings = result["settings"]
    devices = f"{settings['devices']} x {settings['device']}"
    shares = {"all": result["score"], **result["by_category"]}
    width = max(map(len, shares))
    lines = [f"{result['benchmark']}, {result['questions']} questions"]
    lines += [f"  {name:<{width}}  {share:6.1%}" for name, share in shares.items()]
    speed = f"{settings['images_per_second']:.1f} questions per second" if settings["images_per_second"] else "untimed"
    lines.append(
        f"{settings['model']}, {settings['compression']}{'' if settings['with_images'] else ', without images'}; "
        f"{settings['template']}, {settings['aspect']}, {settings['dtype']}, {settings['decoding']['method']}, at most "
        f"{settings['decoding']['max_new_tokens']} tokens; {speed} on {devices}; jax "
        f"{settings['versions']['jax']}; questions {settings['questions_sha256'][:12]}"
    )
    return "\n".join(lines)


def _read_answers(file: Path, questions: Sequence[Question]) -> list[Judged]:
    """Those that were given before."""
    lines, judged = whole_lines(file), []
    if len(lines) > len(questions):
        raise UserError(f"{file} has {len(lines)} answers to {len(questions)} questions: give another --out")
    for number, (line, question) in enumerate(zip(lines, questions, strict=False), 1):
        try:
            row = json.loads(line)
            if row["question_id"] != question.id:
                raise ValueError
            judged.append(Judged(question, row["text"], row["correct"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}, is not the answer to question {question.id}: give another --out"
            ) from None
    return judged


def _texts(vlm: VLM, task: Task, done: int) -> Iterator[tuple[int, list[str]]]:
    """The first question of each batch that is not answered yet, and what the model says: on process 0 all batches in
    order, on another one its own. Batches begin at the same questions whenever the run was stopped."""
    total, size, processes, me = len(task.questions), task.batch_size, jax.process_count(), jax.process_index()
    starts = range(done // size * size if done < total else total, total, size)
    answers = vlm.generate_batches((_asked(task, start) for start in starts[me::processes]), task.max_new_tokens)
    for number, start in enumerate(starts):
        if number % processes == me:
            yield start, next(answers).texts
        elif me == 0:
            yield start, receive(f"answers/{start}")


def _write(texts: Iterator[tuple[int, list[str]]], task: Task, judged: list[Judged], file: Path) -> dict[str, Any]:
    """Judges what is not in `judged` yet, adds it there and to the file, and says how long that took."""
    benchmark, total, size, done = task.benchmark, len(task.questions), task.batch_size, len(judged)
    ended = [time.perf_counter()]
    with tqdm(total=total, initial=done, desc=benchmark.name, unit="question", mininterval=0.5) as bar:
        bar.set_postfix_str("compiling")
        for start, of_batch in texts:
            known, questions = max(done - start, 0), task.questions[start : start + size]
            answers = list(zip(questions, of_batch, strict=False))[known:]  # without fillers
            new = [Judged(question, text, benchmark.judge(question, text)) for question, text in answers]
            with open(file, "a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(_row(benchmark, one), ensure_ascii=False) + "\n" for one in new)
            judged += new
            right = sum(one.correct for one in judged) / len(judged)
            bar.set_postfix_str(f"{right:.1%} right", refresh=False)
            bar.update(len(new))
            ended.append(time.perf_counter())
    processes = jax.process_count()
    steady = np.diff(ended[1::processes])  # between batches of this process; the first one compiles
    rate = round(processes * min(size, total) / float(np.median(steady)), 3) if steady.size else None
    return {"seconds": round(ended[-1] - ended[0], 3), "answered": total - done, "images_per_second": rate}


def _row(benchmark: Benchmark, judged: Judged) -> dict[str, Any]:
    question = judged.question
    return {
        "question_id": question.id,
        "prompt": benchmark.prompt(question),
        "text": judged.text,
        "answer": question.answer,
        "correct": judged.correct,
        "category": question.category,
    }


def _asked(task: Task, start: int) -> tuple[list[str], list[Image.Image | None]]:
    """Prompts and images of a batch. The last is filled up, so that no other program has to be compiled for it."""
    questions = task.questions[start : start + task.batch_size]
    fillers = min(task.batch_size, len(task.questions)) - len(questions)
    rows = [*questions, *questions[-1:] * fillers]
    return [task.benchmark.prompt(question) for question in rows], [_open(task.images, question) for question in rows]


def _open(images: ImageFolder | None, question: Question) -> Image.Image | None:
    if images is None or question.image is None:
        return None
    try:
        return images.open(question.image)
    except BadImage as error:
        raise UserError(f"question {question.id}: {error}") from None
