"""SEED-Bench (Li et al., arXiv 2307.16125): the exact letter. Annotations: SEED-Bench.json.

All questions are counted, those on videos too, as LLaVA does; papers that quote about two points more count images
alone: both are among the parts.
"""

from collections.abc import Sequence
from pathlib import Path

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, by_key, matched, parse, read_text


def score(answers: Sequence[Answer], annotations: Path, questions: Path | None = None) -> Score:
    held = parse(read_text(annotations), str(annotations))
    if not isinstance(held, dict) or not held.get("questions") or "question_type" not in held:
        raise UserError(f"{annotations} is no SEED-Bench.json: expected questions and question_type")
    truth = {str(row["question_id"]): row for row in held["questions"]}
    found, missing = matched(by_key(answers, lambda answer: str(answer.id)), truth, annotations)
    names = {number: name for name, number in held["question_type"].items()}
    of_kind: dict[str, list[bool]] = {}
    for key, row in truth.items():
        right = found[key] == row["answer"]
        for kind in ("all", row["data_type"], names[row["question_type_id"]]):
            of_kind.setdefault(kind, []).append(right)
    parts = {kind: 100 * sum(some) / len(some) for kind, some in of_kind.items()}
    return Score(parts.pop("all"), "%", len(truth), parts, missing)
