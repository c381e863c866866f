"""MM-Vet (Yu et al., arXiv 2308.02490): 218 open questions; GPT-4 grades the answers from 0 to 1.

Files: mm-vet.json and images, as mm-vet.zip has them. Nobody is called from here: the official mm-vet_evaluator.py
(yuweihao/MM-Vet) takes what `submit` writes, and the grades that it saves (…-grade-1runs.json) are the annotations.
"""

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Scorer, mean, means_by_kind, parse, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question
from victor_jax.files import write_whole


class Grade(NamedTuple):
    capabilities: tuple[str, ...]
    value: float  # 0 to 1, the mean of the grader's runs


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    rows = parse(read_text(file), str(file))
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{file} is no mm-vet.json: expected an object of questions")
    for name, row in rows.items():
        if not re.fullmatch("v1_[0-9]+", name) or not row.keys() >= {"imagename", "question", "capability"}:
            raise UserError(f"{file}: {name!r} is no question of MM-Vet with imagename, question and capability")
    return rows


def read(file: Path) -> list[Question]:
    """With LLaVA's ids: 7 is v1_7."""
    return [
        Question(int(name.removeprefix("v1_")), row["question"], (row["imagename"],))
        for name, row in rows_of(file).items()
    ]


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """As LLaVA's convert_mmvet_for_eval.py."""
    said = {answer.id: answer.text for answer in answers}
    texts = {f"v1_{question.id}": said.get(question.id, "") for question in questions}
    write_whole(destination := out / "mm-vet_answers.json", json.dumps(texts, indent=2))
    return destination


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, Grade]:
    """A question that the grader did not reach is an error: the official script goes on where it stopped."""
    if questions is None:
        raise UserError("mm-vet needs --questions=mm-vet.json, which says what capabilities each question asks for")
    grades, rows = parse(read_text(annotations), str(annotations)), rows_of(questions)
    if not isinstance(grades, dict):
        raise UserError(f"{annotations} is no file of grades: expected what mm-vet_evaluator.py saves")
    if differing := sorted(grades.keys() ^ rows.keys()):
        raise UserError(
            f"{differing[0]} stands in one of {annotations} and {questions} alone: grade all questions, and these"
        )
    runs = {name: _runs(grade, f"{annotations}: {name}") for name, grade in grades.items()}
    return {
        int(name.removeprefix("v1_")): Grade(tuple(row["capability"]), sum(runs[name]) / len(runs[name]))
        for name, row in rows.items()
    }


def _runs(grade: Any, where: str) -> list[float]:
    runs = grade.get("score") if isinstance(grade, dict) else None
    if (
        not isinstance(runs, list)
        or not runs
        or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in runs)
    ):
        raise UserError(f"{where} has no list of grades from 0 to 1 under 'score'")
    return runs


def rate(truth: Mapping[Hashable, Grade], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    values = {key: grade.value if texts[key] is not None else 0.0 for key, grade in truth.items()}
    return mean(values.values()), means_by_kind(values, {key: grade.capabilities for key, grade in truth.items()})


MM_VET = Benchmark(
    name="mm-vet",
    folder="mm-vet",
    questions="mm-vet.json",
    images="images",
    max_new_tokens=1024,
    read=read,
    score=Scorer(read_truth, rate),
    submit=submit,
    judged="grades.json",
)
