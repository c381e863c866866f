"""Digits on a grid: a task on real images that ships with a library, in LLaVA's format, with a tokenizer of its own.

scikit-learn's 1,797 scanned digits are split first; canvases for training are then composed of one part, those for
the test of the other. What the test shows was never seen. Everything is a function of the seed.

    python -m examples.quickstart.digits DIR [--grid=12 --cell=16 …]
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from examples.quickstart.questions import AROUND, EMPTY, KINDS, Canvas, Cell, Question, beside, choose, place, questions
from victor_jax.data.templates import VICUNA_SYSTEM
from victor_jax.errors import UserError, exit_status
from victor_jax.files import new_folder

TEST_DIGITS = 360  # of the 1,797
BESIDE = 0.8  # of the digits stand beside another one: else next to most of them would be nothing
LARGEST = 5, 9  # is drawn first, so that it is as often the one as the other
VARIANTS = 16  # of each training digit: the scan itself, and others bent at random by no more than this:
TURN, SLANT, STRETCH = 15, 0.2, (0.85, 1.2)  # degrees; of its height; of its sides
BOARD, INK, NOISE = 112, 140, 6.0  # grey of the canvas and what ink adds to it; the standard deviation of noise
NAME = "{:06d}.png"
PARTS = ("train", "test")
AT_ONCE = 512  # canvases painted together: more would only cost memory


@dataclass(frozen=True)
class Task:
    """How hard it is. A model sees (grid * patches)² visual tokens."""

    grid: int = 4  # cells on a side
    cell: int = 16  # pixels on a side of a cell
    patches: int = 2  # of the vision tower, on a side of a cell: as in photographs, several show one thing
    fewest: int = 7  # digits on a canvas
    most: int = 9
    kinds: tuple[str, ...] = ("place", "where", "largest", "right_of", "below", "above_largest")
    deep: int = 60  # percent of draws of a training question that want more than one step: a canvas has only so many
    turns: int = 8  # at most, questions about each training canvas
    asked: int = 6  # about each test canvas
    train: int = 8000  # canvases
    described: int = 1000  # of them, in words, for stage 1
    test: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UserError(f"unknown kind of question {unknown[0]!r}: known are {', '.join(KINDS)}")
        if not self.kinds:
            raise UserError(f"kinds is empty: choose of {', '.join(KINDS)}")
        if not 3 <= self.grid <= 26 or self.cell < 8:
            raise UserError(f"grid={self.grid} must be 3 to 26 (columns are letters) and cell={self.cell} at least 8")
        if not 6 <= self.fewest <= self.most < self.grid**2:
            raise UserError(
                f"fewest={self.fewest} digits must be at least 6, and most={self.most} no fewer and leave one of "
                f"{self.grid**2} cells free"
            )
        if not 0 <= self.deep <= 100:
            raise UserError(f"deep={self.deep} must be 0 to 100 percent")
        if self.patches < 1 or self.cell % self.patches:
            raise UserError(f"patches={self.patches} must divide cell={self.cell}")
        for name in ("turns", "asked", "train", "described", "test"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def size(self) -> int:
        """Pixels on a side of a canvas."""
        return self.grid * self.cell


class Canvases(NamedTuple):
    pixels: np.ndarray  # uint8 [n, size, size], grey
    digits: np.ndarray  # int8 [n, grid, grid], EMPTY where there is none


def write_digits(folder: Path, task: Task) -> Path:
    """train.json, captions.json, train/, digits/ (the benchmark) and tokenizer/ in `folder`; kept if they are there."""
    wanted = json.dumps(asdict(task), indent=2) + "\n"
    if (folder / "task.json").exists():
        if (folder / "task.json").read_text() == wanted:
            return folder
        raise UserError(f"{folder} holds another task: remove it, or choose another folder")
    with new_folder(folder) as partial:
        train, test = compose(task, "train"), compose(task, "test")
        with tqdm(total=task.train + task.test, desc="drawing canvases", unit=" images") as bar:
            for place, canvases in ((partial / "train", train), (partial / "digits" / "images", test)):
                place.mkdir(parents=True)
                for number, pixels in enumerate(canvases.pixels):
                    Image.fromarray(pixels).save(place / NAME.format(number), compress_level=1)
                    bar.update()
        rows = [_row(number, conversation(digits, task, number)) for number, digits in enumerate(train.digits)]
        captions = [_row(number, [caption(digits)]) for number, digits in enumerate(train.digits[: task.described])]
        (partial / "train.json").write_text(json.dumps(rows))
        (partial / "captions.json").write_text(json.dumps(captions))
        with (partial / "digits" / "questions.jsonl").open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in _test_lines(test.digits, task))
        turns = [turn for row in rows + captions for turn in row["conversations"]]
        write_tokenizer(partial / "tokenizer", [turn["value"] for turn in turns])
        (partial / "task.json").write_text(wanted)
    return folder


def read_task(folder: Path) -> Task:
    """What `write_digits` was asked for."""
    file = folder / "task.json"
    if not file.exists():
        raise UserError(f"there is no {file}: write the data first, by python -m examples.quickstart.digits {folder}")
    given: dict[str, Any] = json.loads(file.read_text())
    return Task(**(given | {"kinds": tuple(given["kinds"])}))


# --- canvases -------------------------------------------------------------------------------------------------------


def compose(task: Task, part: str) -> Canvases:
    """The canvases of "train" or "test", from digits of that part alone."""
    rng = np.random.default_rng((task.seed, PARTS.index(part)))
    digits = np.stack([_draw(task, rng) for _ in range(getattr(task, part))])
    return Canvases(paint(digits, task, part, rng), digits)


def paint(digits: np.ndarray, task: Task, part: str, rng: np.random.Generator) -> np.ndarray:
    """digits int [n, grid, grid] -> uint8 [n, size, size]: scans of that part in their cells, and noise."""
    inks, classes = scans(part, task)
    of_class = [np.flatnonzero(classes == digit) for digit in range(10)]
    pixels = np.empty((len(digits), task.size, task.size), np.uint8)
    for start in range(0, len(digits), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        pixels[some] = _paint(digits[some], inks, of_class, task.cell, rng)
    return pixels


def _paint(
    digits: np.ndarray, inks: np.ndarray, of_class: list[np.ndarray], cell: int, rng: np.random.Generator
) -> np.ndarray:
    count, grid, _ = digits.shape
    side = inks.shape[-1]
    pixels = rng.standard_normal((count, grid, cell, grid, cell), np.float32)
    pixels = BOARD + NOISE * pixels
    number, row, column = np.nonzero(digits != EMPTY)
    shown = digits[number, row, column]
    which = np.zeros(len(number), int)
    for digit, known in enumerate(of_class):
        which[shown == digit] = rng.choice(known, (shown == digit).sum())
    variant = rng.integers(inks.shape[1], size=len(number))
    bright = rng.uniform(0.8, 1.0, len(number)).astype(np.float32)
    place = rng.integers(0, cell - side + 1, (2, len(number)))
    for top, left in np.ndindex(cell - side + 1, cell - side + 1):
        here = (place == [[top], [left]]).all(axis=0)
        ink = inks[which[here], variant[here]] * bright[here, None, None]
        pixels[number[here], row[here], top : top + side, column[here], left : left + side] += ink
    return pixels.reshape(count, grid * cell, grid * cell).clip(0, 255).astype(np.uint8)


def _draw(task: Task, rng: np.random.Generator) -> np.ndarray:
    """int8 [grid, grid]: which digits stand where; each kind of question has an answer."""
    while True:
        digits = np.full((task.grid, task.grid), EMPTY, np.int8)
        count = int(rng.integers(task.fewest, task.most + 1))
        digits[tuple(np.transpose(_cells(count, task.grid, rng)))] = rng.permutation(_classes(count, rng))
        canvas = Canvas(digits)
        if all(any(True for _ in questions(kind, canvas)) for kind in task.kinds):
            return digits


def _classes(count: int, rng: np.random.Generator) -> list[int]:
    """Of that many digits: the largest and three to five others stand there once, the rest more often."""
    largest = int(rng.integers(LARGEST[0], LARGEST[1] + 1))
    others = [int(digit) for digit in rng.permutation(largest)]
    once = min(int(rng.integers(3, 6)), len(others) - 1)
    several = others[once : once + 3]
    more = count - 1 - once
    return [largest, *others[:once], *(several[at % len(several)] for at in range(more))]


def _cells(count: int, grid: int, rng: np.random.Generator) -> list[Cell]:
    """Of that many digits: most are beside another one."""
    taken: list[Cell] = []
    while len(taken) < count:
        if taken and rng.random() < BESIDE:
            cell = beside(taken[rng.integers(len(taken))], AROUND[rng.integers(len(AROUND))])
        else:
            cell = int(rng.integers(grid)), int(rng.integers(grid))
        if min(cell) >= 0 and max(cell) < grid and cell not in taken:
            taken.append(cell)
    return taken


def scans(part: str, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Of one part alone: ink float32 [n, variants, side, side] in grey levels, and the class of each, int [n]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng((task.seed, 2)).permutation(len(data.target))
    chosen = order[:TEST_DIGITS] if part == "test" else order[TEST_DIGITS:]
    side = task.cell - task.cell // 8
    rng = np.random.default_rng((task.seed, 7))
    inks = np.zeros((len(chosen), 1 if part == "test" else VARIANTS, side, side), np.float32)
    for at, index in enumerate(chosen):
        scan = Image.fromarray((data.images[index] * (INK / 16)).astype(np.float32))
        large = scan.resize((side, side), Image.Resampling.BICUBIC)
        for variant in range(inks.shape[1]):
            inks[at, variant] = np.asarray(_bent(large, rng) if variant else large)
    return inks.clip(0, INK), data.target[chosen]


def _bent(scan: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turned, stretched and slanted a little about its middle, as another hand would write it."""
    angle = np.radians(rng.uniform(-TURN, TURN))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, rng.uniform(-SLANT, SLANT)], [0, 1]])
    matrix = turn @ slant / rng.uniform(*STRETCH, 2)
    middle = np.full(2, scan.width / 2)
    (a, b), (c, d) = matrix
    x, y = middle - matrix @ middle
    return scan.transform(scan.size, Image.Transform.AFFINE, (a, b, x, c, d, y), Image.Resampling.BILINEAR)


# --- questions ------------------------------------------------------------------------------------------------------


def conversation(digits: np.ndarray, task: Task, number: int) -> list[Question]:
    """Up to `turns` questions about a training canvas. None is answered by what was said before it."""
    rng = np.random.default_rng((task.seed, 3, number))
    canvas = Canvas(digits)
    asked: list[Question] = []
    known: set[Cell] = set()
    for _ in range(4 * task.turns):  # a small canvas may not have as many
        if len(asked) == task.turns:
            break
        question = choose(_kind(task, rng), canvas, rng, known)
        if question:
            asked.append(question)
            known.update(question.reads)
    return asked


def _kind(task: Task, rng: np.random.Generator) -> str:
    easy = [kind for kind in task.kinds if KINDS[kind].steps == 1]
    deep = [kind for kind in task.kinds if KINDS[kind].steps > 1]
    among = deep if deep and (not easy or rng.random() * 100 < task.deep) else easy
    return among[rng.integers(len(among))]


def caption(digits: np.ndarray) -> Question:
    """The canvas in words, as stage 1 wants it."""
    seen = [f"{place((row, column))} {digits[row, column]}" for row, column in np.argwhere(digits != EMPTY)]
    return Question("caption", "What do you see?", " ".join(seen), ())


def _row(number: int, questions: list[Question]) -> dict[str, Any]:
    """In LLaVA's training format."""
    turns = []
    for at, question in enumerate(questions):
        turns.append({"from": "human", "value": question.text if at else f"<image>\n{question.text}"})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": str(number), "image": NAME.format(number), "conversations": turns}


def _test_lines(digits: np.ndarray, task: Task) -> list[dict[str, Any]]:
    """In LLaVA's evaluation format, with the answer; every kind equally often."""
    rng = np.random.default_rng((task.seed, 4))
    lines: list[dict[str, Any]] = []
    for number, canvas in enumerate(digits):
        for _ in range(task.asked):
            question = choose(task.kinds[len(lines) % len(task.kinds)], Canvas(canvas), rng)
            assert question, "a canvas has questions of every kind"
            lines.append(
                {
                    "question_id": len(lines),
                    "image": NAME.format(number),
                    "text": question.text,
                    "category": question.kind,
                    "answer": question.answer,
                }
            )
    return lines


# --- tokenizer ------------------------------------------------------------------------------------------------------

# A piece goes to the next digit, place or mark; `USER: ` keeps its space, since what follows may be an image.
PIECE = r" ?USER: ?| ?[A-Z]?\d+[^\d:.\n]*?(?= ?[A-Z]?\d|[:.\n]|$):?|[^\d:.\n]+?(?= ?[A-Z]?\d|[:.\n]|$)[:.]?|[:.\n]"
PIECES = 4096  # of the task's text; what they do not spell is spelt in bytes
SPECIAL = ("<unk>", "<s>", "</s>")


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """In the Hugging Face format: the pieces that the text is made of, by frequency, and every byte."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    seen = Counter(dict.fromkeys((VICUNA_SYSTEM, VICUNA_SYSTEM + "USER: ", "USER: ", " ASSISTANT:"), 1))
    for text in texts:  # an answer follows a space, a question does not
        seen.update((text, f" {text}", f"{text} ASSISTANT:"))
    pieces: Counter[str] = Counter()
    for text, times in seen.items():
        for piece, _ in split.pre_tokenize_str(text):
            pieces[piece] += times
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = [piece for piece, _ in sorted(pieces.items(), key=lambda item: (-item[1], item[0])) if len(piece) > 1]
    scored = [(token, 0.0) for token in (*SPECIAL, *whole[:PIECES])] + [(letter, -100.0) for letter in alphabet]
    backend = Tokenizer(models.Unigram(scored, unk_id=0))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.digits", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    for name, value in asdict(Task()).items():
        if name == "kinds":
            known = ", ".join(f"{kind} ({KINDS[kind].steps})" for kind in KINDS)
            parser.add_argument("--kinds", nargs="+", default=value, metavar="KIND", help=f"with their steps: {known}")
        else:
            parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args(arguments))

    def command() -> None:
        write_digits(given.pop("folder"), Task(**{**given, "kinds": tuple(given["kinds"])}))

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
