"""MMBench (Liu et al., arXiv 2307.06281), English and Chinese: one letter of up to four. The quoted number is of
CircularEval: each question is asked once per option, its options rotated, and all these answers must be right.

The published TSV files hold every rotation as a row of its own, its index larger by 1,000,000 per turn: LLaVA's single
pass over all rows asks them all. Answers are read by the rule that VLMEvalKit tries first; the server may then ask a
judge what an answer means that names no option, here it is wrong.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import LETTER, Answer, Scorer, mean, means_by_kind
from victor_jax.evaluation.benchmark import Benchmark, Question, ReadPicture
from victor_jax.evaluation.tsv import EMPTY, PictureTable
from victor_jax.evaluation.xlsx import write_xlsx

LETTER_CN = "\n请直接回答选项字母。"
LETTERS = ("A", "B", "C", "D")
ROTATION = 1_000_000
NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")


@lru_cache(maxsize=2)  # a file is read in seconds, for its questions, its answers, its pictures and the submission
def table(file: Path) -> PictureTable:
    held = PictureTable(file, "question", "A", "B", "answer")
    for index, row in held.rows.items():
        if row["answer"] not in options(row):
            raise UserError(
                f"{file}: the answer {row['answer']!r} to {index} is none of its options (only the dev files have "
                "answers)"
            )
    return held


def options(row: Mapping[str, str]) -> dict[str, str]:
    """Up to the first empty cell. As in LLaVA's script, an option that reads `None` ends the list too."""
    found = {}
    for letter in LETTERS:
        if (text := row.get(letter, "")).lower() in EMPTY:
            break
        found[letter] = text
    return found


def read(file: Path, request: str = LETTER) -> list[Question]:
    """The rotations of a question one after the other: they share a picture, and the first few are whole."""
    held = table(file)
    return [
        Question(index, wording(row) + request, (held.picture_of(index),), row.get("l2-category", ""), row["answer"])
        for index, row in sorted(held.rows.items(), key=lambda item: (item[0] % ROTATION, item[0]))
    ]


def wording(row: Mapping[str, str]) -> str:
    hint = row.get("hint", "")
    lines = [] if hint.lower() in EMPTY else [hint]
    return "\n".join([*lines, row["question"], *(f"{letter}. {text}" for letter, text in options(row).items())])


def pictures(file: Path) -> ReadPicture:
    return table(file).picture


def chosen(text: str, options: Mapping[str, str]) -> str:
    """The one letter among its words, else the one option whose text it holds, else "" (vlmeval/utils/matching_util.py
    of open-compass/VLMEvalKit)."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [letter for letter in options if letter in words]
    if len(named) != 1:
        is_short = len(text) <= 2 * sum(map(len, options.values()))
        named = [letter for letter, option in options.items() if is_short and option.lower() in text.lower()]
    return named[0] if len(named) == 1 else ""


def read_truth(annotations: Path, questions: Path | None) -> dict[Any, dict[str, str]]:  # by index
    return table(annotations).rows


def rate(truth: Mapping[Any, dict[str, str]], texts: Mapping[Any, str | None]) -> tuple[float, dict[str, float]]:
    right = {index: chosen(texts[index] or "", options(row)) == row["answer"] for index, row in truth.items()}
    circular: dict[Hashable, bool] = {}
    kinds: dict[Hashable, tuple[str]] = {}
    for index, is_right in right.items():
        question = index % ROTATION
        circular[question] = circular.get(question, True) and is_right
        kinds[question] = (truth[index].get("l2-category", ""),)
    unrotated = [is_right for index, is_right in right.items() if index < ROTATION]
    return mean(circular.values()), {"without rotations": mean(unrotated), **means_by_kind(circular, kinds)}


def submit(file: str, answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """The sheet of LLaVA's convert_mmbench_for_submission.py: the answer in the seventh column."""
    held, said = table(folder / file), {answer.id: answer.text for answer in answers}
    kept = [name for name in held.columns if name not in NOT_SUBMITTED]
    rows: list[list[str | int]] = [[*kept[:6], "prediction", *kept[6:]]]
    for index, row in held.rows.items():
        cells: list[str | int] = [index if name == "index" else row[name] for name in kept]
        rows.append([*cells[:6], said.get(index, ""), *cells[6:]])
    write_xlsx(destination := out / Path(file).with_suffix(".xlsx").name, rows)
    return destination


EN, CN = "mmbench_dev_20230712.tsv", "mmbench_dev_cn_20231003.tsv"
MMBENCH = Benchmark(
    name="mmbench",
    folder="mmbench",
    questions=EN,
    pictures=pictures,
    annotations=EN,
    max_new_tokens=1024,
    read=read,
    score=Scorer(read_truth, rate),
    submit=partial(submit, EN),
)
MMBENCH_CN = replace(
    MMBENCH,
    name="mmbench-cn",
    folder="mmbench_cn",
    questions=CN,
    annotations=CN,
    read=partial(read, request=LETTER_CN),
    submit=partial(submit, CN),
)
