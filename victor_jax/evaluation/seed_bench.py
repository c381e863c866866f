"""SEED-Bench (Li et al., arXiv 2307.16125): the exact letter. Annotations: SEED-Bench.json.

All questions are counted, those on videos too (their middle frames), as LLaVA does; papers that quote about two points
more count images alone: both are among the parts.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Scorer, by_text_id, mean, means_by_kind, parse, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured
from victor_jax.files import write_whole


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, dict[str, Any]]:
    held = parse(read_text(annotations), str(annotations))
    if not isinstance(held, dict) or not held.get("questions") or "question_type" not in held:
        raise UserError(f"{annotations} is no SEED-Bench.json: expected questions and question_type")
    names = {number: name for name, number in held["question_type"].items()}
    return {str(row["question_id"]): row | {"kind": names[row["question_type_id"]]} for row in held["questions"]}


def rate(
    truth: Mapping[Hashable, dict[str, Any]], texts: Mapping[Hashable, str | None]
) -> tuple[float, dict[str, float]]:
    right = {key: texts[key] == row["answer"] for key, row in truth.items()}
    kinds = {key: (row["data_type"], row["kind"]) for key, row in truth.items()}
    return mean(right.values()), means_by_kind(right, kinds)


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    rows = [{"question_id": str(answer.id), "prediction": answer.text} for answer in answers]
    write_whole(file := out / "seed_bench_predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return file


SEED_BENCH = Benchmark(
    name="seed-bench",
    folder="seed_bench",
    questions="llava-seed-bench.jsonl",
    images=".",
    annotations="SEED-Bench.json",
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, rate, by_text_id),
    submit=submit,
)
