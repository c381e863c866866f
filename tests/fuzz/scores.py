"""Predictions and published annotations of every benchmark that `victor-jax score` knows."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fuzz.property import REFUSALS, Surface
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import read_answers
from victor_jax.evaluation.benchmark import score
from victor_jax.evaluation.pope import SPLITS

TEN = [{"answer": "dog"}] * 3 + [{"answer": "A cat."}] * 7
LABELS = [
    {"image": "a.jpg", "text": f"Is there a {thing}?", "label": label}
    for thing, label in (("dog", "yes"), ("cat", "no"))
]
# By benchmark: the files of its annotations, JSON or JSON lines.
FILES: dict[str, dict[str, Any]] = {
    "vqav2": {"val.json": {"annotations": [{"question_id": 0, "answers": TEN, "answer_type": "other"}]}},
    "vizwiz": {"val.json": [{"image": "VizWiz_val_0.jpg", "answers": TEN}]},
    "textvqa": {"val.json": {"data": [{"image_id": "0", "question": "What brand?", "answers": ["nike"] * 10}]}},
    "gqa": {"val.json": {"0": {"answer": "yes", "types": {"structural": "verify"}}}},
    "seed-bench": {
        "val.json": {
            "questions": [{"question_id": "0", "question_type_id": 1, "data_type": "image", "answer": "B"}],
            "question_type": {"Scene Understanding": 1},
        }
    },
    "scienceqa": {
        "problems.json": {"0": {"answer": 1, "choices": ["x", "y"], "image": "i.png"}},
        "pid_splits.json": {"test": ["0"]},
    },
    "pope": {f"coco_pope_{split}.jsonl": LABELS for split in SPLITS}
    | {
        "questions.jsonl": [
            {"question_id": 2 * at + number, "image": "a.jpg", "text": row["text"], "category": split}
            for at, split in enumerate(SPLITS)
            for number, row in enumerate(LABELS)
        ]
    },
}
ANSWERS = {name: [{"question_id": 0, "text": "Yes", "prompt": "What brand?"}] for name in FILES}


@dataclass(frozen=True)
class Given:
    benchmark: str
    answers: list[Change]
    annotations: list[Change]
    which: int  # of the files of annotations
    damage: list[Damage]


class Scores(Surface):
    name, short = "scores", 120
    inputs = st.builds(
        Given,
        st.sampled_from(sorted(FILES)),
        st.one_of(st.just([]), changes),
        st.one_of(st.just([]), changes, changes),
        st.integers(0, 3),
        st.one_of(st.just([]), st.just([]), damages),
    )

    def prepare(self, given, room):
        files = FILES[given.benchmark]
        for number, (name, content) in enumerate(files.items()):
            is_it = number == given.which % len(files)
            content = changed(content, given.annotations) if is_it else content
            lines = name.endswith(".jsonl")
            text = "\n".join(map(dumps, content)) if lines else dumps(content)
            data = damaged(text.encode("utf-8", "surrogatepass"), given.damage if is_it else [])
            (room / (name if name == "questions.jsonl" else name.replace(".jsonl", ".json"))).write_bytes(data)
        answers = changed(ANSWERS[given.benchmark], given.answers)
        (room / "predictions.json").write_bytes(dumps(answers).encode("utf-8", "surrogatepass"))
        return given.benchmark

    def attempt(self, prepared, room):
        annotations = room if prepared in ("pope", "scienceqa") else room / "val.json"
        answers = read_answers(room / "predictions.json")
        return score(BENCHMARKS[prepared], answers, annotations, room / "questions.jsonl")

    def compare(self, prepared, result):
        if not isinstance(result, REFUSALS):
            assert 0 <= result.score <= 100
            json.dumps(result.parts)
