"""GQA (Hudson and Manning, arXiv 1902.09506): the exact word. Annotations: testdev_balanced_questions.json."""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Scorer, by_text_id, mean, means_by_kind, parse, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured
from victor_jax.files import write_whole


def said(text: str) -> str:
    """As LLaVA hands it to the official script, which compares texts."""
    return text.rstrip(".").lower()


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, dict[str, Any]]:
    truth = parse(read_text(annotations), str(annotations))
    if not isinstance(truth, dict) or not all(isinstance(row, dict) and "answer" in row for row in truth.values()):
        raise UserError(f"{annotations} is no GQA question file: expected an object of questions with their answer")
    return truth


def rate(
    truth: Mapping[Hashable, dict[str, Any]], texts: Mapping[Hashable, str | None]
) -> tuple[float, dict[str, float]]:
    right = {key: said(texts[key] or "") == row["answer"] for key, row in truth.items()}
    kinds = {key: (row.get("types", {}).get("structural", ""),) for key, row in truth.items()}
    return mean(right.values()), means_by_kind(right, kinds)


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """What GQA's own eval.py reads as testdev_balanced_predictions.json."""
    rows = [{"questionId": answer.id, "prediction": said(answer.text)} for answer in answers]
    write_whole(file := out / "testdev_balanced_predictions.json", json.dumps(rows))
    return file


GQA = Benchmark(
    name="gqa",
    folder="gqa",
    questions="llava_gqa_testdev_balanced.jsonl",
    images="data/images",
    annotations="data/testdev_balanced_questions.json",
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, rate, by_text_id),
    submit=submit,
)
