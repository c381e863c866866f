"""ScienceQA (Lu et al., arXiv 2209.09513), the test questions: a letter is right. The quoted number is of those with an
image.

Annotations: the folder with problems.json and pid_splits.json (lupantech/ScienceQA). A question has an image where its
prompt says so, as in LLaVA's script; without a prompt, where the problem has one.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, by_key, matched, parse, read_text

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


def score(answers: Sequence[Answer], annotations: Path, questions: Path | None = None) -> Score:
    problems = _object(annotations / "problems.json")
    test = _object(annotations / "pid_splits.json").get("test", [])
    if not test or not all(problems.get(name, {}).keys() >= {"choices", "answer"} for name in test):
        raise UserError(
            f"{annotations} does not hold the test questions of ScienceQA in problems.json, pid_splits.json"
        )
    given = by_key(answers, lambda answer: str(answer.id))
    found, missing = matched(given, test, annotations / "pid_splits.json")
    right, with_image = {}, {}
    for name in test:
        problem = problems[name]
        right[name] = chosen(str(found[name]), len(problem["choices"])) == problem["answer"]
        prompt = given[name].prompt if name in given else ""
        with_image[name] = "<image>" in prompt if prompt else bool(problem.get("image"))
    seen = [right[name] for name in test if with_image[name]]
    everything = 100 * sum(right.values()) / len(right)
    return Score(100 * sum(seen) / max(len(seen), 1), "%", len(test), {"all": everything}, missing)


def _object(file: Path) -> dict[str, Any]:
    held = parse(read_text(file), str(file))
    if not isinstance(held, dict):
        raise UserError(f"{file} holds a {type(held).__name__}, expected a JSON object")
    return held
