"""What a model answered, from whatever tool asked it, and the score that comes of it.

Predictions are JSON lines as LLaVA's scripts and eval.py write them, `question_id`, `text` and, where a benchmark asks
about the wording, `prompt`; or one JSON list of such objects.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError

# What LLaVA adds to a question.
SINGLE_WORD = "Answer the question using a single word or phrase."
SHORT = f"\n{SINGLE_WORD}"
LETTER = "\nAnswer with the option's letter from the given choices directly."


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


@dataclass(frozen=True)
class Scorer:
    """Joins what was said with what a benchmark publishes, and rates it."""

    # annotations and LLaVA's question file, which only POPE needs -> what is right, by the key of a question
    truth: Callable[[Path, Path | None], Mapping[Hashable, Any]]
    # truth and texts, None where there is none -> the number that is quoted, and others
    rate: Callable[[Mapping[Hashable, Any], Mapping[Hashable, str | None]], tuple[float, dict[str, float]]]
    # how an answer finds its question
    key: Callable[[Answer, Mapping[Hashable, Any]], Hashable] = lambda answer, truth: answer.id
    unit: str = "%"

    def __call__(
        self, answers: Iterable[Answer], annotations: Path, questions: Path | None = None, partial: bool = False
    ) -> Score:
        """`partial`: of the questions that were answered alone, as where only the first few are asked."""
        truth = self.truth(annotations, questions)
        found: dict[Hashable, str] = {}
        for answer in answers:
            key = self.key(answer, truth)
            if key in found:
                raise UserError(f"question {key!r} has two predictions: each needs one")
            if key not in truth:
                raise UserError(
                    f"the prediction of {key!r} answers no question of {annotations}: are they of one split?"
                )
            found[key] = answer.text
        if partial:
            truth = {key: truth[key] for key in found}
        missing = tuple(key for key in truth if key not in found)
        score, parts = self.rate(truth, {key: found.get(key) for key in truth})
        return Score(score, self.unit, len(truth), parts, missing)


def mean(credits: Iterable[float]) -> float:
    """In per cent."""
    given = list(credits)
    return 100 * sum(given) / len(given)


def means_by_kind(credits: Mapping[Hashable, float], kinds: Mapping[Hashable, Iterable[str]]) -> dict[str, float]:
    """In per cent, of the questions of each kind; one may be of several."""
    of_kind: dict[str, list[float]] = {}
    for key, credit in credits.items():
        for kind in filter(None, kinds[key]):
            of_kind.setdefault(kind, []).append(credit)
    return {kind: mean(some) for kind, some in of_kind.items()}


def by_text_id(answer: Answer, truth: Mapping[Hashable, Any]) -> Hashable:
    """For benchmarks whose annotations are JSON objects, with texts for keys."""
    return str(answer.id)


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
