"""What a model answered, from whatever tool asked it, and the score that comes of it.

Predictions are JSON lines as LLaVA's scripts and eval.py write them, `question_id`, `text` and, where a benchmark asks
about the wording, `prompt`; or one JSON list of such objects.
"""

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError

SINGLE_WORD = "Answer the question using a single word or phrase."  # LLaVA's, at the end of a question


@dataclass(frozen=True)
class Answer:
    id: Hashable  # int | str
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Score:
    score: float  # the number that is quoted
    unit: str  # "%", or of MME "points"
    questions: int
    parts: dict[str, float] = field(default_factory=dict)  # other numbers, and those of categories
    missing: tuple[Hashable, ...] = ()  # questions without an answer: they count as wrong


def read_answers(file: Path) -> list[Answer]:
    """Every one, in order; a question may have several only where a benchmark says so."""
    text = read_text(file)
    if text.lstrip().startswith("["):
        rows = enumerate(parse(text, str(file)))
        places = [(f"{file}, entry {number}", row) for number, row in rows]
    else:
        lines = enumerate(text.split("\n"), 1)
        places = [(f"{file}, line {n}", parse(line, f"{file}, line {n}")) for n, line in lines if line.strip()]
    if not places:
        raise UserError(f"{file} holds no predictions")
    return [_answer(row, where) for where, row in places]


def _answer(row: Any, where: str) -> Answer:
    if not isinstance(row, dict):
        raise UserError(f"{where} holds a {type(row).__name__}, expected a JSON object")
    name, text, prompt = row.get("question_id"), row.get("text"), row.get("prompt", "")
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise UserError(f"{where} has question_id={name!r}: expected a number or a text")
    for key, value in (("text", text), ("prompt", prompt)):
        if not isinstance(value, str):
            raise UserError(f"{where} has {key}={value!r}: expected a text")
    return Answer(name, text, prompt)  # type: ignore[arg-type]


def matched(
    answers: Mapping[Hashable, Answer], wanted: Iterable[Hashable], annotations: Path
) -> tuple[dict[Hashable, str], tuple[Hashable, ...]]:
    """The text for every key that is wanted, "" where there is none, and the keys without one."""
    wanted = dict.fromkeys(wanted)
    if strange := [key for key in answers if key not in wanted]:
        raise UserError(
            f"the prediction of {strange[0]!r} answers no question of {annotations}: are they of one split?"
        )
    missing = tuple(key for key in wanted if key not in answers)
    return {key: answers[key].text if key in answers else "" for key in wanted}, missing


def by_key(answers: Iterable[Answer], key: Any = lambda answer: answer.id) -> dict[Hashable, Answer]:
    """Answers by question, each at most once."""
    found: dict[Hashable, Answer] = {}
    for answer in answers:
        if (name := key(answer)) in found:
            raise UserError(f"question {name!r} has two predictions: each needs one")
        found[name] = answer
    return found


def question_of(prompt: str) -> str:
    """Without what LLaVA's question files add to it."""
    return prompt.replace(SINGLE_WORD, "").strip()


def read_lines(file: Path, *fields: str) -> list[dict[str, Any]]:
    """JSON lines, each an object with these fields."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            row = parse(line, f"{file}, line {number}")
            if not isinstance(row, dict) or not row.keys() >= set(fields):
                raise UserError(f"{file}, line {number} is no object with {', '.join(fields)}")
            rows.append(row)
    if not rows:
        raise UserError(f"{file} is empty")
    return rows


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from None
