"""python -m examples.lmms_eval_task.dataset DATA/digits OUT: questions with answers, in the layout of eval.py's digits,
as the data set on disk that lmms-eval reads without a network. Needs `datasets`, which lmms-eval brings."""

import sys
from collections import defaultdict
from pathlib import Path

from victor_jax.evaluation.digits import DIGITS


def write(folder: Path, out: Path) -> None:
    from datasets import Dataset, DatasetDict, Image

    questions = DIGITS.read(folder / DIGITS.questions)
    answers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        answers[question.category].add(question.answer)
    docs = [
        {
            "question_id": question.id,
            "image": str(folder / DIGITS.images / question.images[0]),
            "text": question.text,
            "answer": question.answer,
            "choices": sorted(answers[question.category]),  # what any question of its kind has for an answer
        }
        for question in questions
    ]
    DatasetDict({"test": Dataset.from_list(docs).cast_column("image", Image())}).save_to_disk(str(out))


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:3]))
