"""A row of LLaVA's format becomes turns and image names, or says why it cannot be used."""

import pickle

import pytest

from victor_jax.data.records import BadRow, Record, Turn, parse_record


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def test_a_row_becomes_turns_and_paths():
    raw = {"id": "x", "image": "coco/1.jpg", "conversations": [human("<image>\nWhat?"), gpt("Red.")]}
    turns = (Turn("human", "<image>\nWhat?"), Turn("assistant", "Red."))
    assert parse_record(raw, 7) == Record(7, ("coco/1.jpg",), turns)
    assert parse_record({**raw, "image": ["a.jpg", "b.jpg"]}, 7).images == ("a.jpg", "b.jpg")
    for nothing in (
        {**raw, "image": None},
        {**raw, "image": ""},
        {**raw, "image": []},
        {"conversations": raw["conversations"]},
    ):
        assert parse_record(nothing, 7).images == ()


def test_a_first_turn_of_the_assistant_is_dropped():
    record = parse_record({"conversations": [gpt("Hello."), human("Hi."), gpt("Yes?")]}, 0)
    assert [turn.text for turn in record.turns] == ["Hi.", "Yes?"]


def test_a_last_question_without_an_answer_stays():
    record = parse_record({"conversations": [human("a"), gpt("b"), human("c")]}, 0)
    assert [turn.text for turn in record.turns] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "no 'conversations'"),
        ({"conversations": []}, "no 'conversations'"),
        ({"conversations": "hello"}, "no 'conversations'"),
        ({"conversations": [human("a"), human("b"), gpt("c")]}, "two turns of the human follow each other"),
        ({"conversations": [gpt("a"), gpt("b"), human("c")]}, "two turns of the assistant|alternate"),
        ({"conversations": [human("a")]}, "no answer"),
        ({"conversations": [gpt("a")]}, "no answer"),
        ({"conversations": ["a", "b"]}, "turn 0 is not an object"),
        ({"conversations": [{"from": "system", "value": "a"}, human("b"), gpt("c")]}, "turn 0 is from 'system'"),
        ({"conversations": [human("a"), {"value": "b"}]}, "turn 1 is from None"),
        ({"conversations": [human("a"), {"from": "gpt", "value": None}]}, "turn 1 has no text"),
        ({"conversations": [human("a"), {"from": "gpt"}]}, "turn 1 has no text"),
        ({"conversations": [human("a"), gpt("b\ud83d")]}, "it holds half a character"),
        ({"image": "\ud83d.jpg", "conversations": [human("a"), gpt("b")]}, "it holds half a character"),
        ({"image": 3, "conversations": [human("a"), gpt("b")]}, "neither a path nor a list"),
        ({"image": ["a", 3], "conversations": [human("a"), gpt("b")]}, "neither a path nor a list"),
    ],
)
def test_a_row_that_cannot_be_trained_on_says_why(raw, reason):
    with pytest.raises(BadRow, match=reason) as caught:
        parse_record(raw, 12)
    assert str(caught.value).startswith("row 12: ")
    assert pickle.loads(pickle.dumps(caught.value)).index == 12
