"""GQA (Hudson and Manning, arXiv 1902.09506): the exact word. Annotations: testdev_balanced_questions.json."""

from collections.abc import Sequence
from pathlib import Path

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, by_key, matched, parse, read_text


def said(text: str) -> str:
    """As LLaVA hands it to the official script, which compares texts."""
    return text.rstrip(".").lower()


def score(answers: Sequence[Answer], annotations: Path, questions: Path | None = None) -> Score:
    truth = parse(read_text(annotations), str(annotations))
    if not isinstance(truth, dict) or not all(isinstance(row, dict) and "answer" in row for row in truth.values()):
        raise UserError(f"{annotations} is no GQA question file: expected an object of questions with their answer")
    found, missing = matched(by_key(answers, lambda answer: str(answer.id)), truth, annotations)
    right = {name: said(found[name]) == row["answer"] for name, row in truth.items()}
    of_kind: dict[str, list[bool]] = {}
    for name, row in truth.items():
        if kind := row.get("types", {}).get("structural"):
            of_kind.setdefault(kind, []).append(right[name])
    parts = {kind: 100 * sum(some) / len(some) for kind, some in of_kind.items()}
    return Score(100 * sum(right.values()) / len(right), "%", len(right), parts, missing)
