"""VQAv2 (Goyal et al., arXiv 1612.00837): LLaVA asks the test-dev questions, which a server scores; the annotations of
val are public."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from victor_jax.evaluation import vqa
from victor_jax.evaluation.answers import SHORT, Answer, Scorer, read_lines
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured
from victor_jax.files import write_whole

ALL_IDS = "llava_vqav2_mscoco_test2015.jsonl"


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, vqa.References]:
    rows = vqa.read_rows(annotations, "annotations", "question_id", "answers")
    return {row["question_id"]: vqa.references_of(row) for row in rows}


def read_val(file: Path) -> list[Question]:
    rows = vqa.read_rows(file, "questions", "question_id", "image_id", "question")
    return [
        Question(row["question_id"], row["question"] + SHORT, (f"COCO_val2014_{row['image_id']:012}.jpg",))
        for row in rows
    ]


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """All questions of test2015 in their order, "" for those that test-dev does not ask."""
    said = {answer.id: vqa.normalised(answer.text) for answer in answers}
    ids = [row["question_id"] for row in read_lines(folder / ALL_IDS, "question_id")]
    rows = [{"question_id": name, "answer": said.get(name, "")} for name in ids]
    write_whole(file := out / "vqav2_test2015_results.json", json.dumps(rows))
    return file


VQAV2 = Benchmark(
    name="vqav2",
    folder="vqav2",
    questions="llava_vqav2_mscoco_test-dev2015.jsonl",
    images="test2015",
    also=(ALL_IDS,),
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, vqa.rate),
    submit=submit,
)
VQAV2_VAL = replace(
    VQAV2,
    name="vqav2-val",
    questions="v2_OpenEnded_mscoco_val2014_questions.json",
    images="val2014",
    annotations="v2_mscoco_val2014_annotations.json",
    also=(),
    read=read_val,
    submit=None,
)
