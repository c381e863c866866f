"""LLaVA-Bench in the Wild (Liu et al., arXiv 2304.08485): 60 open questions; GPT-4 judges the answer beside its own.

Files: those of liuhaotian/llava-bench-in-the-wild, and LLaVA's llava/eval/table/rule.json. Nobody is called from here:
`submit` writes what LLaVA's eval_gpt_review_bench.py would ask, and its reviews are the annotations.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Scorer, parse, read_lines, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question, read_questions
from victor_jax.files import write_whole

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
JUDGE = {"model": "gpt-4-0314", "temperature": 0.2, "max_tokens": 1024}  # of the published numbers


class Points(NamedTuple):
    category: str
    reference: float  # of GPT-4's answer
    model: float


def read(file: Path) -> list[Question]:
    """And everything that the judge needs, so that it is there before a model is asked."""
    questions = read_questions(file, "image", "category")
    _requests({}, questions, file.parent)
    return questions


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """A line for each question: what OpenAI's chat completions take, beside the names that a review repeats."""
    said = {answer.id: answer.text for answer in answers}
    lines = [json.dumps(request) + "\n" for request in _requests(said, questions, folder)]
    write_whole(destination := out / "judge_input.jsonl", "".join(lines))
    return destination


def _requests(said: Mapping[Hashable, str], questions: Sequence[Question], folder: Path) -> list[dict[str, Any]]:
    captions = {row["image"]: row["caption"] for row in read_lines(folder / "context.jsonl", "image", "caption")}
    references = {row["question_id"]: row for row in read_lines(folder / "answers_gpt4.jsonl", "question_id", "text")}
    rules = parse(read_text(folder / "rule.json"), str(folder / "rule.json"))
    requests = []
    for number, question in enumerate(questions, 1):
        category, image = f"llava_bench_{question.category}", question.images[0]
        for file, key, held in (
            ("context.jsonl", image, captions),
            ("answers_gpt4.jsonl", question.id, references),
            ("rule.json", category, rules),
        ):
            if key not in held:
                raise UserError(f"{folder / file} has nothing for {key!r}, of question {question.id}")
        reference, rule = references[question.id], rules[category]
        content = _content(captions[image], question.text, (reference["text"], said.get(question.id, "")), rule)
        known = {"id": number, "question_id": question.id, "category": category}
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        requests.append({**known, **JUDGE, "messages": messages})
    return requests


def _content(caption: str | list[str], question: str, answers: Sequence[str], rule: Mapping[str, str]) -> str:
    shown = "\n".join(caption) if isinstance(caption, list) else caption
    role = rule["role"]
    answered = [f"[{role} {n}]\n{text}\n\n[End of {role} {n}]" for n, text in enumerate(answers, 1)]
    blocks = [f"[Context]\n{shown}", f"[Question]\n{question}", *answered, f"[System]\n{rule['prompt']}"]
    return "".join(f"{block}\n\n" for block in blocks)


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, Points]:
    points = {}
    for number, row in enumerate(read_lines(annotations, "question_id", "category", "content"), 1):
        where = f"{annotations}, line {number},"
        if row["question_id"] in points:
            raise UserError(f"{where} is a second review of question {row['question_id']}")
        given = _given(str(row["content"]))
        if given is None:
            raise UserError(
                f"{where} reviews question {row['question_id']} and begins with {row['content'][:40]!r}, not with two "
                "numbers from 1 to 10: judge it again"
            )
        points[row["question_id"]] = Points(row["category"].removeprefix("llava_bench_"), *given)
    return points


def _given(review: str) -> tuple[float, float] | None:
    """`8 7.5` on the first line: GPT-4's points and the model's. Where it reads none, LLaVA's script counts -1."""
    try:
        reference, model = map(float, review.split("\n")[0].replace(",", " ").split())
    except ValueError:
        return None
    return (reference, model) if 1 <= reference <= 10 and 0 <= model <= 10 else None


def rate(truth: Mapping[Hashable, Points], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    """The model's points over GPT-4's, both summed, in per cent."""
    sums: dict[str, list[float]] = {}
    for key, points in truth.items():
        for kind in ("all", points.category):
            of_kind = sums.setdefault(kind, [0.0, 0.0])
            of_kind[0] += points.reference
            of_kind[1] += points.model if texts[key] is not None else 0.0
    parts = {kind: 100 * model / reference for kind, (reference, model) in sums.items()}
    return parts.pop("all"), parts


def key(answer: Answer, truth: Mapping[Hashable, Any]) -> Hashable:
    if answer.id not in truth:
        raise UserError(f"question {answer.id!r} has no review: judge it first")
    return answer.id


LLAVA_W = Benchmark(
    name="llava-w",
    folder="llava-bench-in-the-wild",
    questions="questions.jsonl",
    images="images",
    also=("context.jsonl", "answers_gpt4.jsonl", "rule.json"),
    max_new_tokens=1024,
    read=read,
    score=Scorer(read_truth, rate, key),
    submit=submit,
    judged="reviews.jsonl",
)
