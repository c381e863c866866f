"""MME (Fu et al., arXiv 2306.13394): two questions on each image, yes or no; both right count again.

Annotations: the folder MME_Benchmark_release_version. A question is known by its image and its wording, since both
questions of an image have one id. A category's points are the share of right answers and that of images with both
right, in per cent; perception sums ten categories (2,000 at most), cognition four (800). The quoted number, and
Victor's, is perception.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Scorer, question_of, read_text
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured
from victor_jax.files import write_whole

FOLDER = "MME_Benchmark_release_version"

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
REQUEST = "Please answer yes or no."  # at the end of every question of theirs; LLaVA takes it off

Key = tuple[str, str, str]  # category, image without its ending, question without the request


class Truth(NamedTuple):
    category: str
    image: str  # without its ending
    question: str  # as it is published
    answer: str  # Yes or No


def verdict(text: str) -> str:
    """yes, no or other: the whole answer, one letter, or what its first four characters hold."""
    word = text.lower().strip().replace(".", "")
    if word in ("yes", "no"):
        return word
    if len(word) == 1:
        return {"y": "yes", "n": "no"}.get(word, "other")
    beginning = word[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, Truth]:
    """Each text file is of one image: question, tab, answer."""
    truth: dict[Hashable, Truth] = {}
    for category in (*PERCEPTION, *COGNITION):
        nested = annotations / category / "questions_answers_YN"
        files = sorted((nested if nested.is_dir() else annotations / category).glob("*.txt"))
        if not files:
            raise UserError(
                f"{annotations / category} holds no questions: give the folder MME_Benchmark_release_version"
            )
        for file in files:
            for line in filter(None, map(str.strip, read_text(file).split("\n"))):
                question, _, answer = line.partition("\t")
                if answer.lower() not in ("yes", "no"):
                    raise UserError(f"{file} has the answer {answer!r} to {question!r}: expected Yes or No")
                truth[category, file.stem, _bare(question)] = Truth(category, file.stem, question, answer)
    return truth


def key(answer: Answer, truth: Mapping[Hashable, Truth]) -> Key:
    category, _, rest = str(answer.id).partition("/")
    return category, Path(rest).stem, _bare(question_of(answer.prompt))


def rate(truth: Mapping[Hashable, Truth], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))  # category -> image -> verdicts
    for name, one in truth.items():
        right[one.category][one.image].append(verdict(texts[name] or "") == one.answer.lower())
    points = {category: _points(category, images) for category, images in right.items()}
    perception, cognition = (sum(points.get(category, 0.0) for category in group) for group in (PERCEPTION, COGNITION))
    return perception, {"perception": perception, "cognition": cognition, **points}


def submit(answers: Sequence[Answer], questions: Sequence[Question], folder: Path, out: Path) -> Path:
    """For MME's own calculation.py: a text file for each category, of lines with the image's file, the question as it
    was published, its answer, and what was said."""
    truth = read_truth(folder / FOLDER, None)
    lines: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        one = truth.get(key(answer, truth))
        if one is None:
            raise UserError(f"question {answer.id!r}, {answer.prompt!r}, is none of {folder / FOLDER}")
        said = " ".join(answer.text.split())
        lines[one.category].append("\t".join((f"{one.image}.txt", one.question, one.answer, said)) + "\n")
    (destination := out / "eval_tool_answers").mkdir(exist_ok=True)
    for category, of_it in lines.items():
        write_whole(destination / f"{category}.txt", "".join(of_it))
    return destination


def _bare(question: str) -> str:
    return question.replace(REQUEST, "").strip()


def _points(category: str, images: dict[str, list[bool]]) -> float:
    if odd := [image for image, verdicts in images.items() if len(verdicts) != 2]:
        raise UserError(f"image {odd[0]} of {category} has {len(images[odd[0]])} questions: expected two")
    verdicts = list(images.values())
    one = sum(map(sum, verdicts)) / (2 * len(verdicts))
    return 100 * (one + sum(map(all, verdicts)) / len(verdicts))


MME = Benchmark(
    name="mme",
    folder="MME",
    questions="llava_mme.jsonl",
    images=FOLDER,
    annotations=FOLDER,
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, rate, key, unit="points"),
    submit=submit,
    full_marks=2000.0,
)
