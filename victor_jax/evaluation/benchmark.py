"""What a benchmark is: one value that says how its folder is read, what is asked, how it is scored and submitted."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer, Score, parse, read_text
from victor_jax.files import check_file


@dataclass(frozen=True)
class Question:
    id: int | str
    # All that the model is asked, without the chat template. Pictures come first unless `<image>` says where.
    text: str
    images: tuple[str, ...] = ()  # as the benchmark's pictures are called
    category: str = ""
    answer: str = ""


ReadPicture = Callable[[str], bytes]  # an image file's bytes by name, read when it is asked for


@dataclass(frozen=True)
class Benchmark:
    """Paths are below DATA/folder and are those of LLaVA's eval.zip and of the publishers."""

    name: str
    folder: str
    questions: str
    max_new_tokens: int
    read: Callable[[Path], list[Question]]  # of the question file
    images: str = ""  # the folder of image files; "" where pictures stand in the question file
    pictures: Callable[[Path], ReadPicture] | None = None  # of the question file, where they stand in it
    annotations: str = ""  # "" where a server or a judge scores
    also: tuple[str, ...] = ()  # other files that it needs
    # (answers, annotations, question file, whether only what was answered counts); most are a Scorer
    score: Callable[[Sequence[Answer], Path, Path | None, bool], Score] | None = None
    # (answers, their questions, DATA/folder, a folder to write in) -> the file or folder to send to a server or a judge
    submit: Callable[[Sequence[Answer], Sequence[Question], Path, Path], Path] | None = None
    judged: str = ""  # the file in the folder of results that a judge's answers are put in: the annotations then
    full_marks: float = 100.0
    ocr: bool = False  # whether prompts hold what an OCR system read

    @property
    def needs(self) -> tuple[str, ...]:
        """All but the pictures."""
        return tuple(filter(None, (self.questions, self.annotations, *self.also)))


@contextlib.contextmanager
def as_published(file: Path, name: str) -> Iterator[None]:
    """What reads a file as it must be meets one that is damaged with any of these."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{file} is not what {name} publishes ({type(error).__name__}: {error}): download it again"
        ) from error


def score(
    benchmark: Benchmark,
    answers: Sequence[Answer],
    annotations: Path,
    questions: Path | None = None,
    partial: bool = False,
) -> Score:
    """`partial`: of the questions that were answered alone, as where only the first few are asked."""
    if benchmark.score is None:
        raise UserError(f"{benchmark.name} is scored by its server alone")
    with as_published(annotations, benchmark.name):
        return benchmark.score(answers, annotations, questions, partial)


def read_questions(file: Path, *needed: str) -> list[Question]:
    """LLaVA's question files: JSON lines with question_id, text, and image, category, answer where they have them."""
    check_file(file)
    lines = enumerate(read_text(file).split("\n"), 1)
    return [_question(line, f"{file}, line {number}", needed) for number, line in lines if line.strip()]


def read_pictured(file: Path) -> list[Question]:
    """Of the files in which each question is about a picture."""
    return read_questions(file, "image")


def check_questions(questions: Sequence[Question], file: Path) -> None:
    """There are some, and no two are the same. (Both questions about an image of MME have one id.)"""
    if not questions:
        raise UserError(f"{file} holds no questions")
    for one in questions:
        texts = (one.text, *one.images)
        if isinstance(one.id, bool) or not isinstance(one.id, (int, str)) or not all(isinstance(t, str) for t in texts):
            raise UserError(f"{file} holds question {one.id!r} with {texts!r}: expected a number or a text, and texts")
    often = Counter((question.id, question.text) for question in questions)
    if twice := [name for (name, _), times in often.items() if times > 1]:
        raise UserError(f"{file} holds question {twice[0]!r} twice")


def _question(line: str, where: str, needed: Sequence[str]) -> Question:
    row = parse(line, where)
    if not isinstance(row, dict):
        raise UserError(f"{where} holds a {type(row).__name__}, expected a JSON object")

    def value(key: str, kind: Any, expected: str, default: Any = None) -> Any:
        found = row.get(key, None if key in needed else default)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise UserError(f"{where} has {key}={found!r}: expected {expected}")
        return found

    image = value("image", str if "image" in needed else str | None, "the name of one file")
    return Question(
        value("question_id", int | str, "a number or a text"),
        value("text", str, "a text"),
        (image,) if image else (),
        value("category", str, "a text", ""),
        value("answer", str, "a text", ""),
    )
