"""ScienceQA (Lu et al., arXiv 2209.09513), the test questions: a letter is right. The quoted number is of those with an
image. Annotations: the folder with problems.json and pid_splits.json (lupantech/ScienceQA).
"""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import LETTER, Scorer, by_text_id, mean, parse, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question
from victor_jax.evaluation.vqa import read_rows

LETTERS = "ABCDE"


def chosen(text: str, choices: int) -> int | None:
    """Which choice an answer names, by LLaVA's rule: a letter, "A. …", or "The answer is A." exactly once."""
    letter = text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    elif text not in tuple(LETTERS):
        named = re.findall(r"The answer is ([A-Z]).", text)
        letter = named[0] if len(named) == 1 else ""
    place = LETTERS.find(letter) if letter else -1
    return place if 0 <= place < choices else None


def read(file: Path) -> list[Question]:
    """llava_test_CQM-A.json is in LLaVA's training format: the first turn is the question."""
    rows = read_rows(file, "", "id", "conversations")
    return [_question(row, f"{file}, row {number}") for number, row in enumerate(rows)]


def _question(row: dict[str, Any], where: str) -> Question:
    try:
        text = row["conversations"][0]["value"].replace("<image>", "").strip() + LETTER
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{where} has no first turn: expected conversations of LLaVA's training format") from None
    if image := row.get("image"):
        text = f"<image>\n{text}"  # LLaVA's scorer looks for it
    return Question(row["id"], text, (image,) if image else ())


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, dict[str, Any]]:
    problems = _object(annotations / "problems.json")
    test = _object(annotations / "pid_splits.json").get("test", [])
    if not test or not all(problems.get(name, {}).keys() >= {"choices", "answer"} for name in test):
        raise UserError(
            f"{annotations} does not hold the test questions of ScienceQA in problems.json, pid_splits.json"
        )
    return {name: problems[name] for name in test}


def rate(
    truth: Mapping[Hashable, dict[str, Any]], texts: Mapping[Hashable, str | None]
) -> tuple[float, dict[str, float]]:
    right = {
        name: chosen(texts[name] or "", len(problem["choices"])) == problem["answer"] for name, problem in truth.items()
    }
    seen = [right[name] for name, problem in truth.items() if problem.get("image")]
    return mean(seen) if seen else 0.0, {"all": mean(right.values())}


def _object(file: Path) -> dict[str, Any]:
    held = parse(read_text(file), str(file))
    if not isinstance(held, dict):
        raise UserError(f"{file} holds a {type(held).__name__}, expected a JSON object")
    return held


SCIENCEQA = Benchmark(
    name="scienceqa",
    folder="scienceqa",
    questions="llava_test_CQM-A.json",
    images="images/test",
    annotations=".",
    also=("problems.json", "pid_splits.json"),
    max_new_tokens=1024,
    read=read,
    score=Scorer(read_truth, rate, by_text_id),
)
