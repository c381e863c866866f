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

from victor_jax.data.templates import VICUNA_SYSTEM
from victor_jax.errors import UserError, exit_status
from victor_jax.files import new_folder

KINDS = ("place", "where", "count", "largest", "left_of")
HARD = {"count": 2, "left_of": 2}  # asked more often than the others while training
EMPTY = -1  # the class of a cell without a digit
TEST_DIGITS = 360  # of the 1,797
CROWDED = 24  # digits among which hardly any stands there once
VARIANTS = 16  # of each training digit: the scan itself, and others bent at random by no more than this:
TURN, SLANT, STRETCH = 15, 0.2, (0.85, 1.2)  # degrees; of its height; of its sides
BOARD, INK, NOISE = 112, 140, 6.0  # grey of the canvas and what ink adds to it; the standard deviation of noise
NAME = "{:06d}.png"
PARTS = ("train", "test")
AT_ONCE = 512  # canvases painted together: more would only cost memory


@dataclass(frozen=True)
class Task:
    """How hard it is. With a patch for each cell, a model sees grid² visual tokens."""

    grid: int = 4  # cells on a side
    cell: int = 16  # pixels on a side of a cell
    fewest: int = 4  # digits on a canvas
    most: int = 6
    kinds: tuple[str, ...] = KINDS
    turns: int = 6  # questions about each training canvas: with many, earlier answers give later ones away
    asked: int = 5  # about each test canvas
    train: int = 8000  # canvases
    described: int = 1000  # of them, in words, for stage 1
    test: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UserError(f"unknown kind of question {unknown[0]!r}: known are {', '.join(KINDS)}")
        if not self.kinds:
            raise UserError(f"kinds is empty: choose of {', '.join(KINDS)}")
        if not 3 <= self.grid <= 26 or self.cell < 8:
            raise UserError(f"grid={self.grid} must be 3 to 26 (columns are letters) and cell={self.cell} at least 8")
        if not 4 <= self.fewest <= self.most < self.grid**2 or self.fewest > CROWDED:
            raise UserError(
                f"fewest={self.fewest} digits must be 4 to {CROWDED}, and most={self.most} no fewer and leave one of "
                f"{self.grid**2} cells free"
            )
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


class Question(NamedTuple):
    kind: str
    text: str
    answer: str


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
    """int8 [grid, grid]: which digits stand where; two of them once and in two columns, as questions need them."""
    cells = task.grid**2
    while True:
        in_order = np.full(cells, EMPTY, np.int8)
        filled = rng.integers(task.fewest, task.most + 1)
        palette = rng.permutation(10)[: rng.integers(3, 7)]  # few kinds: else nearly all of them stand there once
        in_order[rng.permutation(cells)[:filled]] = rng.choice(palette, filled)
        digits = in_order.reshape(task.grid, task.grid)
        if len({column for _, column in _standing_once(digits).values()}) >= 2:
            return digits


def _counts(digits: np.ndarray) -> np.ndarray:
    """int [10]: how often each digit stands there."""
    return np.bincount(digits[digits != EMPTY], minlength=10)


def _standing_once(digits: np.ndarray) -> dict[int, tuple[int, int]]:
    """Row and column of each digit that stands there once, by digit."""
    places = {}
    for digit in np.flatnonzero(_counts(digits) == 1):
        row, column = np.argwhere(digits == digit)[0]
        places[int(digit)] = int(row), int(column)
    return places


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
    """`turns` different questions about a training canvas, in random order."""
    rng = np.random.default_rng((task.seed, 3, number))
    asked: dict[str, Question] = {}
    often = [kind for kind in task.kinds for _ in range(HARD.get(kind, 1))]
    kinds = [often[at] for at in rng.permutation(len(often))]
    for _ in range(20 * task.turns):  # a small canvas may not have as many
        if len(asked) == task.turns:
            break
        question = ask(kinds.pop() if kinds else str(rng.choice(task.kinds)), digits, rng)
        asked[question.text] = question
    questions = list(asked.values())
    return [questions[at] for at in rng.permutation(len(questions))]


def ask(kind: str, digits: np.ndarray, rng: np.random.Generator) -> Question:
    """A question about a canvas, and its answer; digits int [grid, grid]."""
    match kind:
        case "place":
            row, column = rng.choice(np.argwhere((digits != EMPTY) == (rng.random() < 0.8)))
            text = f"Which digit is at {place(row, column)}?"
            answer = "none" if digits[row, column] == EMPTY else str(digits[row, column])
        case "count":
            counts = _counts(digits)
            times = rng.choice(np.unique(counts))  # every count is the answer equally often
            digit = rng.choice(np.flatnonzero(counts == times))
            text, answer = f"How often do you see {digit}?", str(times)
        case "largest":
            text, answer = "Which digit is the largest?", str(digits.max())
        case "where":
            once = _standing_once(digits)
            digit = rng.choice(list(once))
            text, answer = f"Where is {digit}?", place(*once[digit])
        case _:  # left_of
            columns = {digit: column for digit, (_, column) in _standing_once(digits).items()}
            pairs = [(a, b) for a in columns for b in columns if columns[a] != columns[b]]
            a, b = pairs[rng.integers(len(pairs))]
            text = f"Is {a} left of {b}?"
            answer = "yes" if columns[a] < columns[b] else "no"
    return Question(kind, text, answer)


def place(row: int, column: int) -> str:
    """As on a chess board: A1 stands at the top left."""
    return f"{chr(ord('A') + column)}{row + 1}"


def caption(digits: np.ndarray) -> Question:
    """The canvas in words, as stage 1 wants it."""
    seen = [f"{place(row, column)} {digits[row, column]}" for row, column in np.argwhere(digits != EMPTY)]
    return Question("caption", "What do you see?", " ".join(seen))


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
        for at in range(task.asked):
            kind, text, answer = ask(task.kinds[at % len(task.kinds)], canvas, rng)
            lines.append(
                {
                    "question_id": len(lines),
                    "image": NAME.format(number),
                    "text": text,
                    "category": kind,
                    "answer": answer,
                }
            )
    return lines


# --- tokenizer ------------------------------------------------------------------------------------------------------

# A piece goes to the next digit, place or mark; `USER: ` keeps its space, since what follows may be an image.
PIECE = r" ?USER: ?| ?[A-Z]?\d+[^\d:.\n]*?(?= ?[A-Z]?\d|[:.\n]|$):?|[^\d:.\n]+?(?= ?[A-Z]?\d|[:.\n]|$)[:.]?|[:.\n]"
PIECES = 256  # of the task's text; what they do not spell is spelt in bytes
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
            parser.add_argument("--kinds", nargs="+", default=value, metavar="KIND", help=", ".join(KINDS))
        else:
            parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args(arguments))

    def command() -> None:
        write_digits(given.pop("folder"), Task(**{**given, "kinds": tuple(given["kinds"])}))

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
