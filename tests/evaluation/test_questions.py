"""Question files and the digits' judge."""

import json

import pytest

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.benchmark import Question, check_questions, read_questions
from victor_jax.evaluation.digits import DIGITS

ROW = {"question_id": 1, "image": "1.png", "text": "Which?", "category": "place", "answer": "7"}


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"


def judged(folder, answer, said):
    """Of one question: 100 or 0."""
    return DIGITS.score([Answer(1, said)], write(folder, ROW | {"answer": answer})).score


@pytest.mark.parametrize("said", ["7", " 7.", "7 ."])
def test_the_exact_word_is_right_whatever_its_dress(tmp_path, said):
    assert judged(tmp_path, "7", said) == 100


def test_case_is_no_difference(tmp_path):
    assert judged(tmp_path, "yes", "Yes.") == 100


@pytest.mark.parametrize("said", ["", "77", "7 7", "the 7", "seven", "7, 8"])
def test_anything_else_is_wrong(tmp_path, said):
    assert judged(tmp_path, "7", said) == 0


def test_accuracy_counts_questions_not_categories(tmp_path):
    right = {"place": "yyyn", "count": "n"}
    rows = [ROW | {"category": kind, "answer": said} for kind, of_it in right.items() for said in of_it]
    file = write(tmp_path, *(row | {"question_id": number} for number, row in enumerate(rows)))
    answers = [Answer(number, "y") for number in range(5)]
    found = DIGITS.score(answers, file)
    assert (found.score, found.parts) == (60, {"place": 75, "count": 0})
    assert DIGITS.score(answers[:2], file).score == 40, "what is missing is wrong"
    assert DIGITS.score(answers[:2], file, partial=True).score == 100
    assert DIGITS.score(answers[:2], file, partial=True).questions == 2


def test_questions_are_read_in_their_order(tmp_path):
    text_only = {key: ROW[key] for key in ROW if key != "image"} | {"question_id": "b", "text": "a\u2028b"}
    file = write(tmp_path, ROW, "", json.dumps(text_only, ensure_ascii=False))
    assert read_questions(file) == [
        Question(1, "Which?", ("1.png",), "place", "7"),
        Question("b", "a\u2028b", (), "place", "7"),
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
        ([ROW, ROW], "holds question 1 twice"),
    ],
)
def test_a_question_file_that_cannot_be_used_says_where(tmp_path, rows, sentence):
    with pytest.raises(UserError, match=f"questions.jsonl.*{sentence}"):
        check_questions(read_questions(file := write(tmp_path, *rows)), file)


def test_a_question_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl cannot be read: No such file"):
        read_questions(tmp_path / "none.jsonl")
