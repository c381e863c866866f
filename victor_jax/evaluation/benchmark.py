"""What a benchmark is, and what several of them share."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import parse
from victor_jax.files import check_file

FIELDS: dict[str, tuple[Any, str]] = {
    "question_id": (int | str, "a number or a text"),
    "image": (str | None, "the name of one file"),
    **dict.fromkeys(("text", "category", "answer"), (str, "a text")),
}


@dataclass(frozen=True)
class Question:
    id: int | str
    image: str | None  # as the image folder knows it
    text: str
    category: str
    answer: str


@dataclass(frozen=True)
class Judged:
    question: Question
    text: str  # what the model said
    correct: bool


@dataclass(frozen=True)
class Benchmark:
    name: str
    max_new_tokens: int
    read: Callable[[Path], list[Question]]
    prompt: Callable[[Question], str]  # what the model is asked, without the chat template
    judge: Callable[[Question, str], bool]
    summarise: Callable[[Sequence[Judged]], dict[str, Any]]  # `score`, `by_category`, and what else it reports


def read_questions(file: Path) -> list[Question]:
    """LLaVA's question files, one JSON object per line, with the answer beside the question."""
    check_file(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the questions {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    questions = [_question(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise UserError(f"{file} holds no questions")
    often = Counter(question.id for question in questions)
    if twice := [name for name, times in often.items() if times > 1]:
        raise UserError(f"{file} has two questions with question_id {twice[0]!r}: each needs its own")
    return questions


def _question(line: str, where: str) -> Question:
    row = parse(line, where)
    if not isinstance(row, dict):
        raise UserError(f"{where} holds a {type(row).__name__}, expected a JSON object")
    for key, (kind, expected) in FIELDS.items():
        if not isinstance(row.get(key), kind):
            raise UserError(f"{where} has {key}={row.get(key)!r}: expected {expected}")
    return Question(row["question_id"], row.get("image"), row["text"], row["category"], row["answer"])


def accuracy(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares of correct answers, 0 to 1: of all questions, and of each category."""
    of_category: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        of_category[one.question.category].append(one.correct)
    return {
        "score": sum(one.correct for one in judged) / len(judged),
        "by_category": {name: sum(correct) / len(correct) for name, correct in of_category.items()},
    }
