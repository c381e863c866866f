"""From a folder of benchmarks to what is asked of a model; all that can be wrong there is found before it is read."""

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from victor_jax.data.images import ImageFolder
from victor_jax.errors import UserError, join_names
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.benchmark import Benchmark, Question, ReadPicture, as_published, check_questions, score
from victor_jax.limits import check_whole

ALL = "all"


@dataclass(frozen=True)
class Task:
    """Everything about an evaluation but the model."""

    benchmark: Benchmark
    folder: Path
    questions: tuple[Question, ...]
    picture: ReadPicture | None  # None: blind, the questions are asked without their pictures
    batch_size: int
    max_new_tokens: int
    limit: int | None = None  # only so many questions, the first, are asked

    @property
    def digest(self) -> str:
        """Of what is asked, whatever file it stands in."""
        asked = [[question.id, question.text, question.images] for question in self.questions]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def annotations(self) -> Path | None:
        return self.folder / self.benchmark.annotations if self.benchmark.annotations else None


def open_tasks(
    names: str,
    data: str | Path,
    *,
    blind: bool = False,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    limit: int | None = None,
) -> tuple[list[Task], list[str]]:
    """`names`: benchmarks joined by commas, or "all" for those that are there. Also returns a sentence for each of
    them that is not."""
    check_whole("batch_size", batch_size)
    for name, value in (("max_new_tokens", max_new_tokens), ("limit", limit)):
        if value is not None:
            check_whole(name, value)
    root = Path(data)
    if not os.path.isdir(root):
        raise UserError(f"the folder of benchmarks {root} does not exist")
    chosen = list(BENCHMARKS.values()) if names == ALL else [named(name) for name in dict.fromkeys(names.split(","))]
    absent = {one.name: sentence for one in chosen if (sentence := _what_lacks(one, root, blind))}
    if names != ALL and absent:
        raise UserError(next(iter(absent.values())))
    tasks = []
    for benchmark in chosen:
        if benchmark.name not in absent:
            size = max_new_tokens or benchmark.max_new_tokens
            tasks.append(_open(benchmark, root, blind, batch_size, size, limit))
    if not tasks:
        raise UserError(f"{root} holds no benchmark; the first that was looked for: {next(iter(absent.values()))}")
    return tasks, list(absent.values())


def named(name: str) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"there is no benchmark {name!r}: {meant}known are {', '.join(BENCHMARKS)}, and {ALL}")


def _what_lacks(benchmark: Benchmark, root: Path, blind: bool) -> str:
    """A sentence, "" where all is there."""
    images = (benchmark.images,) if benchmark.images and not blind else ()
    needed = [root / benchmark.folder / name for name in dict.fromkeys((*benchmark.needs, *images))]
    lacking = [str(path) for path in needed if not os.path.exists(path)]
    return f"{benchmark.name}: there is no {join_names(lacking)}" if lacking else ""


def _open(
    benchmark: Benchmark, root: Path, blind: bool, batch_size: int, max_new_tokens: int, limit: int | None
) -> Task:
    folder = root / benchmark.folder
    file = folder / benchmark.questions
    with as_published(file, benchmark.name):
        questions = benchmark.read(file)[:limit]
    check_questions(questions, file)
    if benchmark.annotations:  # what does not belong together is found by scoring nothing
        nothing = [Answer(question.id, "", question.text) for question in questions]
        score(benchmark, nothing, folder / benchmark.annotations, file, partial=limit is not None)
    picture = None if blind else _pictures(benchmark, folder, questions)
    return Task(benchmark, folder, tuple(questions), picture, batch_size, max_new_tokens, limit)


def _pictures(benchmark: Benchmark, folder: Path, questions: Sequence[Question]) -> ReadPicture:
    if benchmark.pictures:
        return benchmark.pictures(folder / benchmark.questions)
    images = ImageFolder(folder / benchmark.images)
    asked: dict[str, int | str] = {}  # and the first question that does
    for question in questions:
        for name in question.images:
            asked.setdefault(name, question.id)
    if absent := [name for name in asked if not os.path.isfile(images.folder / name)]:
        raise UserError(
            f"{images.folder} lacks {len(absent)} of {len(asked)} images: {join_names(absent)}; "
            f"the first is of question {asked[absent[0]]!r}"
        )
    return images.read
