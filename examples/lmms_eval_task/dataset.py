"""python -m examples.lmms_eval_task.dataset QUESTIONS IMAGES OUT: LLaVA's question file, with answers, as the data set
on disk that lmms-eval reads without a network. Needs `datasets`, which lmms-eval brings."""

import json
import sys
from collections import defaultdict
from pathlib import Path


def write(questions: Path, images: Path, out: Path) -> None:
    from datasets import Dataset, DatasetDict, Image

    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row["category"]].add(row["answer"])
    # The choices of a question are what any question of its kind has for an answer.
    docs = [{**row, "image": str(images / row["image"]), "choices": sorted(answers[row["category"]])} for row in rows]
    DatasetDict({"test": Dataset.from_list(docs).cast_column("image", Image())}).save_to_disk(str(out))


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:4]))
