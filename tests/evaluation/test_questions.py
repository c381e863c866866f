"""Question files and the digits' judge."""

import json

import pytest

from victor_jax.errors import UserError
from victor_jax.evaluation.benchmark import Judged, Question, accuracy, read_questions
from victor_jax.evaluation.digits import DIGITS

ROW = {"question_id": 1, "image": "1.png", "text": "Which?", "category": "place", "answer": "7"}


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"


@pytest.mark.parametrize("said", ["7", " 7.", "7 ."])
def test_the_exact_word_is_right_whatever_its_dress(said):
    assert DIGITS.judge(Question(1, None, "Which?", "place", "7"), said)


def test_case_is_no_difference():
    assert DIGITS.judge(Question(1, None, "Is it?", "left_of", "yes"), "Yes.")


@pytest.mark.parametrize("said", ["", "77", "7 7", "the 7", "seven", "7, 8"])
def test_anything_else_is_wrong(said):
    assert not DIGITS.judge(Question(1, None, "Which?", "place", "7"), said)


def test_accuracy_counts_questions_not_categories():
    right = {"place": [True, True, True, False], "count": [False]}
    judged = [
        Judged(Question(i, None, "?", category, ""), "", correct)
        for category, of_it in right.items()
        for i, correct in enumerate(of_it)
    ]
    assert accuracy(judged) == {"score": 0.6, "by_category": {"place": 0.75, "count": 0.0}}


def test_questions_are_read_in_their_order(tmp_path):
    text_only = {key: ROW[key] for key in ROW if key != "image"} | {"question_id": "b", "text": "a\u2028b"}
    file = write(tmp_path, ROW, "", json.dumps(text_only, ensure_ascii=False))
    assert read_questions(file) == [
        Question(1, "1.png", "Which?", "place", "7"),
        Question("b", None, "a\u2028b", "place", "7"),
    ]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "holds no questions"),
        ([ROW, "{"], "line 2 is not JSON"),
        ([ROW, "[1]"], "line 2 holds a list, expected a JSON object"),
        ([ROW | {"answer": 7}], "line 1 has answer=7: expected a text"),
        ([{"text": "Which?"}], "line 1 has question_id=None: expected a number or a text"),
        ([ROW | {"image": ["1.png"]}], "expected the name of one file"),
        ([ROW, ROW], "two questions with question_id 1"),
    ],
)
def test_a_question_file_that_cannot_be_used_says_where(tmp_path, rows, sentence):
    with pytest.raises(UserError, match=f"questions.jsonl.*{sentence}"):
        read_questions(write(tmp_path, *rows))


def test_a_question_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl cannot be read: No such file"):
        read_questions(tmp_path / "none.jsonl")
