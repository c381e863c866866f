"""Digits on a canvas, the task of the quickstart: questions with one-word answers, and the exact word is right.

Questions of your own serve as well: DATA/digits/questions.jsonl, lines of question_id, image, text, category, answer,
and DATA/digits/images.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path

from victor_jax.evaluation.answers import Scorer, mean, means_by_kind
from victor_jax.evaluation.benchmark import Benchmark, Question, read_questions


def normalised(text: str) -> str:
    """Case, white space and a closing full stop say nothing."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def read(file: Path) -> list[Question]:
    return read_questions(file, "answer")


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, Question]:
    return {question.id: question for question in read(annotations)}


def rate(truth: Mapping[Hashable, Question], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    right = {key: is_right(texts[key], question.answer) for key, question in truth.items()}
    return mean(right.values()), means_by_kind(right, {key: (truth[key].category,) for key in truth})


def is_right(text: str | None, answer: str) -> bool:
    return text is not None and normalised(text) == normalised(answer)


DIGITS = Benchmark(
    name="digits",
    folder="digits",
    questions="questions.jsonl",
    images="images",
    annotations="questions.jsonl",
    max_new_tokens=8,
    read=read,
    score=Scorer(read_truth, rate),
)
