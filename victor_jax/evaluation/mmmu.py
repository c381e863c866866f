"""MMMU (Yue et al., arXiv 2311.16502), the validation questions of thirty subjects: a letter or a short answer.

Files: SUBJECT/validation-*.parquet of the data set MMMU/MMMU. The prompts are the authors' for LLaVA-1.5
(MMMU-Benchmark/MMMU mmmu/run_llava.py): the picture in front, and the text as it is, which says `<image 1>`. Where it
names several, all are in front, as in lmms-eval; the authors' script shows the first alone, and guesses where several
options are pictures. Answers are read as in mmmu/utils/eval_utils.py, but one that names no option is wrong: there, an
option is drawn.
"""

import ast
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from victor_jax.data.parquet_file import open_parquet
from victor_jax.errors import UserError
from victor_jax.evaluation.answers import LETTER, SHORT, Scorer, mean, means_by_kind
from victor_jax.evaluation.benchmark import Benchmark, Question, ReadPicture

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
COLUMNS = ("id", "question", "options", "answer", "question_type")
MARK = re.compile(r"<image ([1-7])>")


def read_rows(folder: Path) -> dict[Any, dict[str, Any]]:
    """By id, with the options as {letter: text}, the answer as a list of what is right, and the place of the row."""
    files = sorted(folder.glob("*/validation-*.parquet"))
    if not files:
        raise UserError(f"{folder} holds no SUBJECT/validation-*.parquet of the data set MMMU/MMMU")
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        if file.parent.name not in DOMAIN_OF:
            raise UserError(f"{file.parent} is named after no subject of MMMU")
        for number, row in enumerate(_columns(file, COLUMNS)):
            if row["id"] in rows:
                raise UserError(f"{file}, row {number}, has the id {row['id']!r} of an earlier row")
            known = {"subject": file.parent.name, "place": (file, number)}
            rows[row["id"]] = _checked(row, f"{file}, row {number}") | known
    return rows


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    is_choice, answer = row["question_type"] == "multiple-choice", row["answer"]
    options = {chr(ord("A") + place): text for place, text in enumerate(_listed(row["options"]) if is_choice else [])}
    right = _listed(answer) if str(answer).startswith("[") else [answer]
    if not isinstance(answer, str) or not right or (is_choice and answer not in options):
        raise UserError(f"{where} (id {row['id']!r}) has the answer {answer!r} to the options {row['options']!r}")
    return row | {"options": options, "answer": right}


def _listed(text: Any) -> list[str]:
    """Lists are published as Python writes them: "['$6', '$7']"."""
    try:
        held = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return []
    return [str(one) for one in held] if isinstance(held, list) else []


@lru_cache(maxsize=8)  # a file has thirty rows, and up to seven columns of pictures
def _columns(file: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    with open_parquet(file) as opened:
        if lacking := [name for name in names if name not in opened.schema_arrow.names]:
            raise UserError(f"{file} has no column {lacking[0]!r}: is it one of MMMU?")
        try:
            return opened.read(list(names)).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): copy it again") from None


def read(folder: Path) -> list[Question]:
    questions = []
    for name, row in read_rows(folder).items():
        text = wording(row["question"], row["options"])
        shown = sorted(set(MARK.findall(text))) or ["1"]
        pictures = tuple(f"{name}/image_{number}" for number in shown)
        front = "<image>\n" * len(shown) if len(shown) > 1 else ""  # one comes first by itself
        questions.append(Question(name, front + text, pictures, row["subject"]))
    return questions


def pictures(folder: Path) -> ReadPicture:
    """By their names ID/image_N."""
    places = {name: row["place"] for name, row in read_rows(folder).items()}

    def picture(name: str) -> bytes:
        question, _, column = name.rpartition("/")
        file, number = places[question]
        held = _columns(file, (column,))[number][column]
        if not held or not held["bytes"]:
            raise UserError(f"{file} does not hold {column} of question {question}")
        return held["bytes"]

    return picture


def wording(question: str, options: Mapping[str, str]) -> str:
    if not options:
        return question + SHORT
    return "\n".join([question, *(f"({letter}) {text}" for letter, text in options.items()), LETTER])


def chosen(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that stands last in it: as (A), else as a word, else, in more than five words, by its text."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        if letter := _last({letter: text.rfind(form.format(letter)) for letter in options}):
            return letter
    if len(text.split()) > 5:
        return _last({letter: text.lower().rfind(option.lower()) for letter, option in options.items()})
    return None


def _last(places: dict[str, int]) -> str | None:
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=lambda letter: found[letter]) if found else None


# The official parser's words before which nothing of an answer counts; in the last line an equals sign too.
LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d)(?![,\d])",
)


def answers_openly(text: str, right: Sequence[str]) -> bool:
    """A number is right to two decimals; a text, where the answer holds it."""
    wanted = [one for answer in right for one in _normalised(answer)]
    texts = [one for one in wanted if isinstance(one, str)]
    return any(
        any(one in said for one in texts) if isinstance(said, str) else said in wanted for said in _statements(text)
    )


def _statements(text: str) -> list[str | float]:
    """What each line says after its leads, and every number in that."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    tails = [_tail(line, (*LEADS, "=") if number == len(lines) else LEADS) for number, line in enumerate(lines, 1)]
    said = [tail for tail in tails if tail and tail not in (":", ",", ".", "!", "?", ";", "'")] or [text]
    numbers = [number for one in said for form in NUMBERS for number in re.findall(form, one)]
    return [normal for one in (*said, *numbers) for normal in _normalised(one)]


def _tail(line: str, leads: Sequence[str]) -> str:
    shortest = ""
    for lead in leads:
        if lead in line:
            tail = line.split(lead)[-1].strip()
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
    return shortest


def _normalised(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]  # one letter alone, not within a word


def read_truth(annotations: Path, questions: Path | None) -> dict[Any, dict[str, Any]]:
    return read_rows(annotations)


def rate(
    truth: Mapping[Hashable, dict[str, Any]], texts: Mapping[Hashable, str | None]
) -> tuple[float, dict[str, float]]:
    right = {key: _is_right(texts[key] or "", row["options"], row["answer"]) for key, row in truth.items()}
    kinds = {key: (DOMAIN_OF[row["subject"]],) for key, row in truth.items()}
    unread = [chosen(texts[key] or "", row["options"]) is None for key, row in truth.items() if row["options"]]
    return mean(right.values()), {**means_by_kind(right, kinds), "no option named": mean(unread or [0])}


def _is_right(text: str, options: Mapping[str, str], right: Sequence[str]) -> bool:
    return chosen(text, options) in right if options else answers_openly(text, right)


MMMU = Benchmark(
    name="mmmu",
    folder="mmmu",
    questions=".",
    pictures=pictures,
    annotations=".",
    max_new_tokens=128,
    read=read,
    score=Scorer(read_truth, rate),
)
