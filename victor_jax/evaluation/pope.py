"""POPE (Li et al., arXiv 2305.10355): is this object in the image? F1 of "yes" over three ways to draw the objects.

Annotations: the folder of coco_pope_{random,popular,adversarial}.json (AoiDragon/POPE, output/coco). Questions: LLaVA's
llava_pope_test.jsonl, which says what split each question is of. LLaVA's script joins the two by their order; here they
are joined by image and wording, so that another version of the labels is noticed.
"""

from collections.abc import Sequence
from pathlib import Path

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, by_key, matched, question_of, read_lines

SPLITS = ("random", "popular", "adversarial")


def said_yes(text: str) -> bool:
    """LLaVA's rule: "no" or "not" in the first sentence, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def score(answers: Sequence[Answer], annotations: Path, questions: Path | None = None) -> Score:
    if questions is None:
        raise UserError("pope needs --questions=llava_pope_test.jsonl, which says what split each question is of")
    labels = {
        (split, row["image"], row["text"]): row["label"] == "yes"
        for split in SPLITS
        for row in read_lines(annotations / f"coco_pope_{split}.json", "image", "text", "label")
    }
    asked = read_lines(questions, "question_id", "image", "text", "category")
    found, missing = matched(by_key(answers), [row["question_id"] for row in asked], questions)
    counts = {split: [0, 0, 0, 0] for split in SPLITS}  # said no and it is no; no, yes; yes, no; yes, yes
    for row in asked:
        key = (row["category"], row["image"], question_of(row["text"]))
        if key not in labels:
            raise UserError(
                f"question {row['question_id']!r} of {questions} has no label in "
                f"{annotations / f'coco_pope_{key[0]}.json'}: they are of different versions"
            )
        label = labels[key]
        yes = said_yes(found[row["question_id"]]) if row["question_id"] not in missing else not label
        counts[row["category"]][2 * yes + label] += 1
    parts: dict[str, float] = {}
    for split, of_split in counts.items():
        parts |= {f"{split} {name}": 100 * value for name, value in _measures(*of_split).items()}
    mean = sum(parts[f"{split} F1"] for split in SPLITS) / len(SPLITS)
    return Score(mean, "%", len(asked), parts, missing)


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
