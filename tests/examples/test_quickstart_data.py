"""The quickstart's task is what it says: right answers, unseen test scans, the same files from the same seed; its text
is spelt by its own tokenizer, and the tower that it starts from sees digits."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoTokenizer

import victor_jax
from examples.quickstart import sight
from examples.quickstart.digits import Task, compose, conversation, main, scans, write_digits
from examples.quickstart.questions import EMPTY, KINDS, Canvas, choose
from victor_jax.data.labels import Reader
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError
from victor_jax.evaluation.digits import DIGITS
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.losses import IGNORE

SMALL = Task(train=24, described=20, test=10, seed=3)
VISUAL = (SMALL.grid * SMALL.patches) ** 2
SCANS = "examples.quickstart.digits.scans"


@pytest.fixture(autouse=True, scope="module")
def scans_kept():
    """To bend all scans takes longer than most of what is made of them."""
    kept = {}

    def once(part, task):
        known = part, task.seed, task.cell
        if known not in kept:
            kept[known] = scans(part, task)
        return kept[known]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCANS, once)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "data", SMALL)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def crowded():
    return {"train": sight.crowd(SMALL, "train", 6400), "test": sight.crowd(SMALL, "test", 1600)}


def places_of(canvas):
    """Canvas as a reader of the picture would list it: "B3" -> the digit that stands there."""
    return {
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[column] + str(row + 1): int(digit)
        for row, line in enumerate(canvas.tolist())
        for column, digit in enumerate(line)
        if digit != EMPTY
    }


COLUMNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTIONS = {
    "place": r"Which digit is at ([A-Z]\d+)\?",
    "where": r"Where is (\d)\?",
    "row": r"In which row is (\d)\?",
    "column": r"In which column is (\d)\?",
    "largest": r"Which digit is the largest\?",
    "right_of": r"What is right of (\d)\?",
    "below": r"What is below (\d)\?",
    "above_largest": r"What is above the largest\?",
    "even_below_largest": r"Is the digit below the largest even\?",
    "nearer_to_corner": r"Which is nearer to a corner, (\d) or (\d)\?",
    "how_many_larger": r"How many are larger than the one at ([A-Z]\d+)\?",
    "sum_of_row": r"What is the sum of the row of (\d)\?",
    "right_of_below": r"What is right of the digit below (\d)\?",
    "right_of_below_largest": r"What is right of the digit below the largest\?",
    "how_many_larger_below": r"How many are larger than the digit below (\d)\?",
}


def answer_to(text, canvas):
    """Kind, answer and the places that it takes, from nothing but the words of the question and what stands there."""
    stands = places_of(canvas)
    ((kind, named),) = [
        (kind, asked.groups()) for kind, words in QUESTIONS.items() if (asked := re.fullmatch(words, text))
    ]

    def only(digit):
        (place,) = [place for place, found in stands.items() if found == int(digit)]
        return place

    def moved(place, right=0, down=0):
        there = f"{COLUMNS[COLUMNS.index(place[0]) + right]}{int(place[1:]) + down}"
        assert there in stands, "nothing stands there"
        return there

    def larger(place):
        return sum(digit > stands[place] for digit in stands.values())

    def to_corner(digit):
        row, column = int(only(digit)[1:]) - 1, COLUMNS.index(only(digit)[0])
        return min(abs(row - r) + abs(column - c) for r in (0, len(canvas) - 1) for c in (0, len(canvas) - 1))

    largest = max(stands.values())
    match kind, *named:
        case "place", place:
            column, row = COLUMNS.index(place[0]), int(place[1:]) - 1
            assert max(column, row) < len(canvas)
            answer, reads = stands.get(place, "none"), [place]
        case "where" | "row" | "column", digit:
            part = {"where": slice(None), "row": slice(1, None), "column": slice(1)}[kind]
            answer, reads = only(digit)[part], [only(digit)]
        case ["largest"]:
            answer, reads = largest, [only(largest)]
        case "nearer_to_corner", a, b:
            assert to_corner(a) != to_corner(b), "neither is nearer"
            answer, reads = min(a, b, key=to_corner), [only(a), only(b)]
        case "how_many_larger", place:
            answer, reads = larger(place), [place]
        case "sum_of_row", digit:
            reads = [place for place in stands if place[1:] == only(digit)[1:]]
            assert len(reads) > 1, "the question names the sum"
            answer = sum(stands[place] for place in reads)
        case "right_of_below" | "right_of_below_largest", *digit:
            below = moved(only(*digit or [largest]), down=1)
            reads = [only(*digit or [largest]), below, moved(below, right=1)]
            answer = stands[reads[-1]]
        case _, *digit:
            start = only(*digit or [largest])
            step = {"right_of": {"right": 1}, "above_largest": {"down": -1}}.get(kind, {"down": 1})
            reads = [start, moved(start, **step)]
            answer = stands[reads[-1]]
            if kind == "even_below_largest":
                answer = "yes" if answer in (0, 2, 4, 6, 8) else "no"
            elif kind == "how_many_larger_below":
                answer = larger(reads[-1])
    return kind, str(answer), reads


def standardised(images):
    flat = images.reshape(len(images), -1) - images.mean(axis=(1, 2))[:, None]
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def file_hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- questions ------------------------------------------------------------------------------------------------------


ALL = tuple(KINDS)


@pytest.mark.parametrize(
    "task",
    [
        Task(kinds=ALL, train=80),
        Task(grid=5, most=20, train=80),
        Task(kinds=ALL, grid=12, cell=8, fewest=20, most=40, train=30, seed=2),  # rows of two figures
    ],
    ids=["all", "crowded", "large"],
)
def test_every_answer_is_right_and_was_not_told_before(task):
    seen = set()
    for number, canvas in enumerate(compose(task, "train").digits):
        told = set()
        for question in conversation(canvas, task, number):
            kind, answer, reads = answer_to(question.text, canvas)
            assert (question.kind, question.answer) == (kind, answer), (question, canvas)
            unknown = set(reads) - told
            assert unknown if kind in ("nearer_to_corner", "sum_of_row") else reads[-1] in unknown
            told |= set(reads)
            seen.add(kind)
    assert seen == set(task.kinds)


def test_training_rows_belong_to_their_images(folder):
    canvases = compose(SMALL, "train")
    rows, captions = (json.loads((folder / name).read_text()) for name in ("train.json", "captions.json"))
    assert len(rows) == SMALL.train
    assert len(captions) == SMALL.described
    for number, row in enumerate(rows):
        shown = np.asarray(Image.open(folder / "train" / row["image"]))
        np.testing.assert_array_equal(shown, canvases.pixels[number])
        texts = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        assert 2 < len(texts) <= 2 * SMALL.turns
        for text, answer in zip(texts[::2], texts[1::2], strict=True):
            assert answer_to(text, canvases.digits[number])[1] == answer
    for number, caption in enumerate(captions):
        assert caption["image"] == rows[number]["image"]
        words = caption["conversations"][1]["value"].split()
        said = {where: int(digit) for where, digit in zip(words[::2], words[1::2], strict=True)}
        assert said == places_of(canvases.digits[number])


def test_the_benchmark_reads_right_answers_of_every_kind_equally_often(folder):
    canvases = compose(SMALL, "test")
    questions = DIGITS.read(folder / "digits" / "questions.jsonl")
    lines = [json.loads(line) for line in (folder / "digits" / "questions.jsonl").read_text().splitlines()]
    assert len(questions) == len(lines) == SMALL.test * SMALL.asked
    for question, line in zip(questions, lines, strict=True):
        canvas = canvases.digits[int(line["image"].removesuffix(".png"))]
        assert answer_to(line["text"], canvas)[:2] == (line["category"], line["answer"])
        assert (folder / "digits" / "images" / line["image"]).exists()
        assert question.answer == line["answer"]
    counts = [sum(line["category"] == kind for line in lines) for kind in SMALL.kinds]
    assert counts == [SMALL.test] * len(SMALL.kinds)


def test_deep_says_how_many_questions_take_more_than_one_step():
    shares = []
    for deep in (0, Task().deep, 100):
        task = Task(train=50, deep=deep)
        rows = [conversation(canvas, task, at) for at, canvas in enumerate(compose(task, "train").digits)]
        shares.append(np.mean([KINDS[question.kind].steps > 1 for row in rows for question in row]))
    assert shares[0] == 0
    assert 0.33 < shares[1] < 0.67
    assert shares[2] == 1


def test_the_words_alone_say_little():
    """Always giving a kind's most frequent answer; of yes and no one is right half of the time."""
    task = Task(test=200, kinds=ALL)
    rng = np.random.default_rng(0)
    canvases = [Canvas(digits) for digits in compose(task, "test").digits]
    for kind in ALL:
        answers = Counter(choose(kind, canvas, rng).answer for canvas in canvases)
        assert max(answers.values()) / 200 < (0.65 if kind == "even_below_largest" else 0.35), (kind, answers)


def test_only_the_kinds_asked_for_come_up(tmp_path):
    assert main([str(tmp_path / "data"), "--train=4", "--test=2", "--kinds", "where", "below"]) == 0
    lines = (tmp_path / "data" / "digits" / "questions.jsonl").read_text().splitlines()
    assert {json.loads(line)["category"] for line in lines} == {"where", "below"}


# --- the split, the seed, the folder --------------------------------------------------------------------------------


def test_every_scan_is_in_one_part_alone():
    of_part = {}
    for part in ("train", "test"):
        inks, classes = scans(part, SMALL)
        upright = inks[:, 0]
        of_part[part] = {ink.tobytes() for ink in upright}
        assert len(of_part[part]) == len(classes)
        assert set(classes) == set(range(10))
    assert len(of_part["train"]) + len(of_part["test"]) == len(load_digits().images)
    assert not of_part["train"] & of_part["test"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_canvases_show_scans_of_their_part(part, crowded):
    """Whichever scan correlates best with a cell. The vision tower's canvases share the split of the task's."""
    of_part = {one: standardised(scans(one, SMALL)[0].reshape(-1, 14, 14)) for one in ("train", "test")}
    own, other = of_part.pop(part), *of_part.values()
    for canvases in (compose(SMALL, part), crowded[part]):
        for pixels, digits in zip(canvases.pixels[:10], canvases.digits, strict=False):
            cells = pixels.reshape(4, 16, 4, 16).swapaxes(1, 2)[digits != EMPTY].astype(np.float32)
            windows = np.lib.stride_tricks.sliding_window_view(cells, (14, 14), axis=(1, 2))
            shown = standardised(windows.reshape(-1, 14, 14))
            likeness, unlike = ((shown @ known.T).reshape(len(cells), -1).max(axis=1) for known in (own, other))
            assert (likeness > 0.97).all()
            assert (likeness > unlike).all()


def test_the_seed_decides_every_byte(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(SCANS, scans)
    again = write_digits(tmp_path / "again", SMALL)
    assert file_hashes(again) == file_hashes(folder)
    other = file_hashes(write_digits(tmp_path / "other", Task(train=24, test=10, seed=4)))
    same = {name for name, value in file_hashes(folder).items() if other[name] == value}
    assert not {name for name in same if not name.startswith("tokenizer/")}


def test_a_whole_folder_is_kept_and_another_task_refused(tmp_path, capsys):
    data = tmp_path / "data"
    command = [str(data), "--train=4", "--test=2"]
    assert main(command) == 0
    stamps = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == stamps
    capsys.readouterr()
    assert main([*command, "--seed=1"]) == 2
    assert capsys.readouterr().err == f"error: {data} holds another task: remove it, or choose another folder\n"
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == stamps


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_digits(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kinds": ("place", "colour")}, "unknown kind of question 'colour': known are place, where"),
        ({"kinds": ()}, "kinds is empty"),
        ({"grid": 2, "fewest": 4, "most": 4}, "grid=2 must be 3 to 26"),
        ({"grid": 27}, "grid=27 must be 3 to 26"),
        ({"cell": 7}, "cell=7 at least 8"),
        ({"fewest": 5}, "fewest=5 digits must be at least 6"),
        ({"fewest": 6, "most": 5}, "most=5 no fewer"),
        ({"most": 16}, "most=16 no fewer and leave one of 16 cells free"),
        ({"patches": 3}, "patches=3 must divide cell=16"),
        ({"deep": 101}, "deep=101 must be 0 to 100 percent"),
        ({"train": 0}, "train=0 must be at least 1"),
        ({"asked": 0}, "asked=0 must be at least 1"),
    ],
)
def test_an_impossible_task_is_one_clear_error(wrong, words):
    with pytest.raises(UserError, match=words):
        Task(**wrong)


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "1234567890",
        "A1 7 D4 0 Z26 none",
        "Which digit is at C3?",
        "  two  spaces, a tab\tand\n\na line: ",
        "ünïcode \u2013 東京 🦉 \u200d é",
        "USER: who? ASSISTANT: I.",
        "user:USER:  :..12:A1",
        "",
    ],
)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_answers_of_the_benchmark_are_one_token_each(folder, tokenizer):
    for line in (folder / "digits" / "questions.jsonl").read_text().splitlines():
        ids = tokenizer(f" {json.loads(line)['answer']}", add_special_tokens=False).input_ids
        assert len(ids) == 1, line


def test_rows_train_the_answers_and_their_ends(folder, tokenizer):
    """Our own reader takes every row; each answer is one token, and nothing else but its end is supervised."""
    reader = Reader(open_source(folder / "train.json"), TEMPLATES["vicuna_v1"], tokenizer, VISUAL, 2048)
    assert len(reader) == SMALL.train
    for number in range(len(reader)):
        example = reader[number]
        turns = reader.records[number]["conversations"]
        assert example.images == (reader.records[number]["image"],)
        assert (example.ids == IMAGE).sum() == 1
        supervised = example.targets[example.targets != IGNORE].tolist()
        answers, ends = supervised[::2], supervised[1::2]
        assert [tokenizer.decode([answer]).strip() for answer in answers] == [turn["value"] for turn in turns[1::2]]
        assert ends == [tokenizer.eos_token_id] * len(answers)
        assert tokenizer.unk_token_id not in example.ids


def test_captions_train_every_digit(folder, tokenizer):
    reader = Reader(open_source(folder / "captions.json"), TEMPLATES["plain"], tokenizer, VISUAL, 2048)
    for number in range(len(reader)):
        targets = reader[number].targets
        said = tokenizer.decode(targets[targets != IGNORE].tolist())
        assert said == reader.records[number]["conversations"][1]["value"] + "\n"


# --- sight ----------------------------------------------------------------------------------------------------------


def test_a_few_steps_give_sight_and_the_same_again(tokenizer, crowded):
    """By chance a patch without sight names one digit in ten. Patches that show parts want more steps."""
    config = sight.tiny(replace(SMALL, patches=1), tokenizer)
    drawn = sight.draw(config, SMALL.seed)
    seeing, known = sight.give_sight(config, drawn, crowded["train"], crowded["test"], SMALL.seed, steps=50)
    again, known_again = sight.give_sight(config, drawn, crowded["train"], crowded["test"], SMALL.seed, steps=50)
    assert known > 0.4
    assert known_again == known
    assert all(name.startswith("vision/") for name in seeing)
    assert set(seeing) == set(again) <= set(drawn)
    for name, tensor in seeing.items():
        np.testing.assert_array_equal(tensor.load(), again[name].load(), strict=True)


def test_the_seed_draws_the_model(tokenizer):
    config = sight.tiny(SMALL, tokenizer)
    one, same, other = (sight.draw(config, seed) for seed in (0, 0, 1))
    assert all((tensor.load() == same[name].load()).all() for name, tensor in one.items())
    kernels = [name for name in one if name.endswith(("kernel", "embedding"))]
    assert all((one[name].load() != other[name].load()).any() for name in kernels)


def test_the_start_is_a_checkpoint_that_answers(folder, tmp_path, monkeypatch):
    """It holds the tower that was trained and the task's tokenizer; untrained as it is, it may say anything."""
    monkeypatch.setattr(sight, "CELLS", 2400)
    sight.write_start(tmp_path / "start", folder / "tokenizer", SMALL, steps=2)
    model = victor_jax.load(tmp_path / "start", dtype="float32")
    drawn = sight.draw(sight.tiny(SMALL, AutoTokenizer.from_pretrained(folder / "tokenizer")), SMALL.seed)
    assert model.config.vision.patches == VISUAL
    np.testing.assert_array_equal(
        model.params["projector/linear_1/kernel"], drawn["projector/linear_1/kernel"].load(), strict=True
    )
    assert (np.asarray(model.params["vision/position_embedding"]) != drawn["vision/position_embedding"].load()).any()
    (answer,) = model.generate(["Where is 3?"], [folder / "digits" / "images" / "000000.png"], max_new_tokens=2)
    assert isinstance(answer, str)
