"""POPE (Li et al., arXiv 2305.10355): is this object in the image? F1 of "yes" over three ways to draw the objects.

Annotations: the folder of coco_pope_{random,popular,adversarial}.json (AoiDragon/POPE, output/coco). Questions: LLaVA's
llava_pope_test.jsonl, which says what split each question is of. LLaVA's script joins the two by their order; here they
are joined by image and wording, so that another version of the labels is noticed.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import NamedTuple

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Scorer, question_of, read_lines
from victor_jax.evaluation.benchmark import Benchmark, read_pictured

SPLITS = ("random", "popular", "adversarial")


class Truth(NamedTuple):
    split: str
    label: bool


def said_yes(text: str) -> bool:
    """LLaVA's rule: "no" or "not" in the first sentence, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, Truth]:
    if questions is None:
        raise UserError("pope needs --questions=llava_pope_test.jsonl, which says what split each question is of")
    labels = {
        (split, row["image"], row["text"]): row["label"] == "yes"
        for split in SPLITS
        for row in read_lines(annotations / f"coco_pope_{split}.json", "image", "text", "label")
    }
    truth: dict[Hashable, Truth] = {}
    for row in read_lines(questions, "question_id", "image", "text", "category"):
        key = (row["category"], row["image"], question_of(row["text"]))
        if key not in labels:
            raise UserError(
                f"question {row['question_id']!r} of {questions} has no label in "
                f"{annotations / f'coco_pope_{key[0]}.json'}: they are of different versions"
            )
        truth[row["question_id"]] = Truth(row["category"], labels[key])
    return truth


def rate(truth: Mapping[Hashable, Truth], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    counts = {split: [0, 0, 0, 0] for split in SPLITS}  # said no and it is no; no, yes; yes, no; yes, yes
    for key, one in truth.items():
        text = texts[key]
        yes = said_yes(text) if text is not None else not one.label
        counts[one.split][2 * yes + one.label] += 1
    parts: dict[str, float] = {}
    for split, of_split in counts.items():
        parts |= {f"{split} {name}": 100 * value for name, value in _measures(*of_split).items()}
    asked = [split for split in SPLITS if any(counts[split])]
    return sum(parts[f"{split} F1"] for split in asked) / len(asked), parts


def _measures(true_no: int, false_no: int, false_yes: int, true_yes: int) -> dict[str, float]:
    total = true_no + false_no + false_yes + true_yes
    return {
        "F1": _share(2 * true_yes, 2 * true_yes + false_yes + false_no),
        "accuracy": _share(true_yes + true_no, total),
        "precision": _share(true_yes, true_yes + false_yes),
        "recall": _share(true_yes, true_yes + false_no),
        "said yes": _share(true_yes + false_yes, total),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


POPE = Benchmark(
    name="pope",
    folder="pope",
    questions="llava_pope_test.jsonl",
    images="val2014",
    annotations="coco",
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, rate),
)
