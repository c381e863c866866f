"""Many mixed questions, answered in several ways, always with the same words; and what happens meanwhile."""

from threading import Event
from unittest import mock

import numpy as np
import pytest
import talking

import victor_jax
from victor_jax.errors import UserError
from victor_jax.inference.buckets import in_order
from victor_jax.inference.vlm import VLM

QUESTIONS = ["What is in the picture?", "How many cats?", "Which is red?", "Is the light on?", "Is it?"]
COUNT = 120
NEW = 6


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = talking.saved(tmp_path_factory.mktemp("talk") / "m", "victor:registers=3,layer=2")
    return victor_jax.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def asked():
    """Prompts and names of pictures: none, one of twelve, two of them, or one with a long text beside it."""
    rng = np.random.default_rng(0)
    prompts, images = [], []
    for number in range(COUNT):
        question = f"{QUESTIONS[number % 5]} {number % 7}"
        kind = rng.choice(4, p=[0.2, 0.5, 0.1, 0.2])
        names = [f"{name}" for name in rng.integers(12, size=(0, 1, 2, 1)[kind])]
        if kind == 2:
            question = f"<image> or <image>: {question}"
        prompts.append(question + " A dog sits on the mat." * (2 * (kind == 3)))
        images.append(names)
    return prompts, images


def open_named(name):
    return talking.picture(int(name))


def answers(vlm, prompts, images, batch_size):
    rows = vlm.prompter.ask(prompts, images)
    batches = vlm.in_buckets(rows, batch_size)
    answered = vlm.generate_batches(rows, batches, NEW, open=open_named)
    return in_order(len(rows), batches, (of_batch.texts for of_batch in answered))


@pytest.fixture(scope="module")
def together(vlm, asked):
    return answers(vlm, *asked, 16)


def test_answers_do_not_depend_on_the_batch_they_are_in(vlm, asked, together):
    prompts, images = asked
    assert len(set(together)) > 50
    assert answers(vlm, prompts, images, 1) == together
    order = np.random.default_rng(1).permutation(COUNT)
    shuffled = answers(vlm, [prompts[i] for i in order], [images[i] for i in order], 16)
    assert [shuffled[place] for place in np.argsort(order)] == together


def test_a_run_that_goes_on_answers_as_one_that_was_not_stopped(vlm, asked, together):
    rows = vlm.prompter.ask(*asked)
    batches = vlm.in_buckets(rows, 16)
    left = vlm.generate_batches(rows, vlm.in_buckets(rows, 16)[4:], NEW, open=open_named)
    assert [of_batch.texts for of_batch in left] == [[together[row] for row in batch.rows] for batch in batches[4:]]


def test_a_picture_of_several_rows_is_opened_and_seen_once(vlm, asked, together):
    rows = vlm.prompter.ask(*asked)
    batch = vlm.in_buckets(rows, 16)[0]  # rows with two pictures among them
    opened = []
    given, _ = vlm.read(
        [rows[row] for row in batch.filled],
        batch.shape,
        batch.pictures,
        lambda name: opened.append(name) or open_named(name),
    )
    shown = [name for row in batch.filled for name in rows[row].images]
    assert sorted(opened) == sorted(set(shown))
    assert len(given.pixels) == batch.pictures < len(shown)


def test_the_device_answers_the_next_batch_while_the_caller_works_on_the_last(vlm, asked):
    rows = vlm.prompter.ask(*asked)
    batches = vlm.in_buckets(rows, 16)[:4]
    began = [Event() for _ in batches]

    def compute(self, batch, shape, max_new_tokens, draws, stops, end_tokens):
        next(event for event in began if not event.is_set()).set()
        return np.zeros((len(batch.targets), max_new_tokens), np.int32), ["full"] * len(batch.targets)

    with mock.patch.object(VLM, "_new_tokens", compute):
        answered = vlm.generate_batches(rows, batches, NEW, open=open_named)
        assert next(answered).texts == [""] * 16
        assert began[1].wait(timeout=10), "it waits until the caller comes back"
        assert not began[2].wait(timeout=0.2), "two batches are in the memory of the device"
        assert len(list(answered)) == 3


def test_a_picture_that_cannot_be_read_comes_after_all_answers_before_it(vlm, asked, together):
    rows = vlm.prompter.ask(*asked)
    batches = vlm.in_buckets(rows, 16)[::-1]  # those without pictures first

    def refuse(name):
        raise UserError(f"{name} cannot be used")

    answered = vlm.generate_batches(rows, batches, NEW, open=refuse)
    before = next(number for number, batch in enumerate(batches) if batch.shape.images)
    assert before > 0
    for batch in batches[:before]:
        assert next(answered).texts == [together[row] for row in batch.rows]
    with pytest.raises(UserError, match="cannot be used"):
        next(answered)


def test_an_answer_ends_before_its_stop_string(vlm):
    """Two characters of two free answers."""
    free = vlm.generate(QUESTIONS[:3], None, 12)
    stop = [free[0][3:5], free[1][4:6]]

    def cut(text):
        return min((text.split(one)[0] for one in stop), key=len).strip()

    expected = [cut(text) for text in free]
    assert expected[0] != free[0]
    assert vlm.generate(QUESTIONS[:3], None, 12, stop=stop) == expected


def test_decoding_ends_when_all_rows_said_a_stop_string(vlm):
    said = vlm.prompter.tokenizer.decode
    prepared = vlm.read(vlm.prompter.ask(QUESTIONS[:3], None))
    free, _ = vlm._new_tokens(*prepared, 12, None, None, ())
    stop = [next(letter for letter in said(row)[3:] if letter.isalpha()) for row in free.tolist()]
    tokens, _ = vlm._new_tokens(*prepared, 12, None, vlm.prompter.stops(stop), ())
    for row, of_row in zip(free.tolist(), tokens.tolist(), strict=True):
        length = next(n for n in range(1, 13) if any(one in said(row[:n], skip_special_tokens=True) for one in stop))
        assert length < 12
        assert of_row == row[:length] + [vlm.config.pad_token] * (12 - length)


@pytest.mark.parametrize(
    ("stop", "words"),
    [("###", "stop must be a list of texts"), ([5], "entry 0 of stop is a int"), ([""], "stop holds an empty text")],
)
def test_stop_strings_that_are_none_are_refused(vlm, stop, words):
    with pytest.raises(UserError, match=words):
        vlm.generate(["What?"], None, 2, stop=stop)
