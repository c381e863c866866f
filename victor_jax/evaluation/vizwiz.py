"""VizWiz (Gurari et al., arXiv 1802.08218), a question for each image: LLaVA asks the test questions, which a server
scores; the annotations of val are public."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from victor_jax.evaluation import vqa
from victor_jax.evaluation.answers import SHORT, Answer, Scorer
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured
from victor_jax.files import write_whole

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, vqa.References]:
    rows = vqa.read_rows(annotations, "", "image", "answers")
    return {row["image"]: vqa.references_of(row) for row in rows}


def key(answer: Answer, truth: Mapping[Hashable, vqa.References]) -> Hashable:
    """The image's name, or its place in the annotations, from 0, as in LLaVA's files."""
    if isinstance(answer.id, int) and 0 <= answer.id < len(truth):
        return next(islice(truth, answer.id, None))
    return answer.id


def read_val(file: Path) -> list[Question]:
    rows = vqa.read_rows(file, "", "image", "question")
    return [Question(row["image"], row["question"] + UNANSWERABLE + SHORT, (row["image"],)) for row in rows]


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    rows = [
        {"image": question.images[0], "answer": vqa.normalised(answer.text)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    write_whole(file := out / "vizwiz_test_results.json", json.dumps(rows))
    return file


VIZWIZ = Benchmark(
    name="vizwiz",
    folder="vizwiz",
    questions="llava_test.jsonl",
    images="test",
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, vqa.rate, key),
    submit=submit,
)
VIZWIZ_VAL = replace(
    VIZWIZ, name="vizwiz-val", questions="val.json", images="val", annotations="val.json", read=read_val, submit=None
)
