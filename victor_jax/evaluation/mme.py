"""MME (Fu et al., arXiv 2306.13394): two questions on each image, yes or no; both right count again.

Annotations: the folder MME_Benchmark_release_version. A question is known by its image and its wording, since both
questions of an image have one id. A category's points are the share of right answers and that of images with both
right, in per cent; perception sums ten categories (2,000 at most), cognition four (800). The quoted number, and
Victor's, is perception.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, by_key, matched, question_of, read_text

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

Key = tuple[str, str, str]  # category, image without its ending, question


def verdict(text: str) -> str:
    """yes, no or other: the whole answer, one letter, or what its first four characters hold."""
    word = text.lower().strip().replace(".", "")
    if word in ("yes", "no"):
        return word
    if len(word) == 1:
        return {"y": "yes", "n": "no"}.get(word, "other")
    beginning = word[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def score(answers: Sequence[Answer], annotations: Path, questions: Path | None = None) -> Score:
    truth = read_truth(annotations)
    found, missing = matched(by_key(answers, _key), truth, annotations)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))  # category -> image -> verdicts
    for key, answer in truth.items():
        category, image, _ = key
        right[category][image].append(verdict(found[key]) == answer)
    points = {category: _points(category, images) for category, images in right.items()}
    perception, cognition = (sum(points.get(category, 0.0) for category in group) for group in (PERCEPTION, COGNITION))
    parts = {"perception": perception, "cognition": cognition, **points}
    return Score(perception, "points", len(truth), parts, missing)


def read_truth(folder: Path) -> dict[Key, str]:
    """yes or no for every question. Each text file is of one image: question, tab, answer."""
    truth: dict[Key, str] = {}
    for category in (*PERCEPTION, *COGNITION):
        nested = folder / category / "questions_answers_YN"
        files = sorted((nested if nested.is_dir() else folder / category).glob("*.txt"))
        if not files:
            raise UserError(f"{folder / category} holds no questions: give the folder MME_Benchmark_release_version")
        for file in files:
            for line in filter(None, map(str.strip, read_text(file).split("\n"))):
                question, _, answer = line.partition("\t")
                if answer.lower() not in ("yes", "no"):
                    raise UserError(f"{file} has the answer {answer!r} to {question!r}: expected Yes or No")
                truth[category, file.stem, question.replace(REQUEST, "").strip()] = answer.lower()
    return truth


def _key(answer: Answer) -> Key:
    category, _, rest = str(answer.id).partition("/")
    return category, Path(rest).stem, question_of(answer.prompt).replace(REQUEST, "").strip()


def _points(category: str, images: dict[str, list[bool]]) -> float:
    if odd := [image for image, verdicts in images.items() if len(verdicts) != 2]:
        raise UserError(f"image {odd[0]} of {category} has {len(images[odd[0]])} questions: expected two")
    verdicts = list(images.values())
    one = sum(map(sum, verdicts)) / (2 * len(verdicts))
    return 100 * (one + sum(map(all, verdicts)) / len(verdicts))
