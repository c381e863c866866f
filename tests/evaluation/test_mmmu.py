"""All 1,800 answers of the authors' example_outputs (LLaVA-1.5-13B, Qwen-VL) are judged as by their script, run beside
this one once; the files are not kept here."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from victor_jax.data.images import decode
from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.mmmu import MMMU, answers_openly, chosen

OPTIONS = {"A": "the blue whale", "B": "a wren", "C": "moss", "D": "moss and a wren"}


@pytest.mark.parametrize(("text", "letter"), [
    ("B", "B"), ("(B) or (C)", "C"), ("B.", "B"), ("A (B) C", "B"), ("first A then D", "D"), ("b", None), ("", None),
    ("a wren", None), ("it may well be a wren there", "B"), ("Not moss but surely the blue whale", "A"), ("AB", None),
])  # fmt: skip
def test_the_letter_that_is_named_last_is_meant(text, letter):
    assert chosen(text, OPTIONS) == letter


@pytest.mark.parametrize(("text", "right", "expected"), [
    ("3.14159", ["3.14"], True), ("The answer is 1,234 apples", ["1234"], True), ("12.5 %", ["12"], False),
    ("x = 4\nso it is 5", ["5"], True), ("x = 4\nso it is 5", ["4"], False), ("about 24/7", ["24/7", "3.429"], True),
    ("An embryonic stage", ["embryonic"], True), ("B", ["B"], True), ("Bulb", ["B"], False), ("", ["4"], False),
    ("It is -2e3.", ["-2000"], True), ("The final answer is transformation", ["Transformation"], True),
])  # fmt: skip
def test_an_open_answer_is_a_number_or_holds_the_text(text, right, expected):
    assert answers_openly(text, right) is expected


def test_pictures_stand_in_front_and_are_named_in_the_text(small):
    art, maths, physics = MMMU.read(small / "mmmu")
    assert art.text == (
        "Which color does <image 1> show?\n(A) red\n(B) green\n(C) blue\n(D) yellow\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert maths.text.startswith("<image>\n<image>\nWhich picture shows a circle?\n(A) <image 1>\n(B) <image 2>\n\n")
    assert maths.images == ("validation_Math_1/image_1", "validation_Math_1/image_2")
    assert physics.text.endswith("in <image 1>?\nAnswer the question using a single word or phrase.")


def test_pictures_are_read_by_name(small):
    picture = MMMU.pictures(small / "mmmu")
    assert decode(picture("validation_Math_1/image_2"), "").size == (96, 72)
    with pytest.raises(UserError, match="does not hold image_3 of question validation_Math_1"):
        picture("validation_Math_1/image_3")


def test_letters_and_short_answers_are_scored_by_domain(small):
    answers = [
        Answer("validation_Art_1", "(A)"),
        Answer("validation_Math_1", "neither"),
        Answer("validation_Physics_1", "0.0"),
    ]
    result = MMMU.score(answers, small / "mmmu")
    assert result.score == pytest.approx(200 / 3)
    assert result.parts == {"Art and Design": 100, "Science": 50, "no option named": 50}


def test_a_question_without_an_answer_is_wrong_and_named(small):
    result = MMMU.score([Answer("validation_Art_1", "A")], small / "mmmu")
    assert result.score == pytest.approx(100 / 3)
    assert result.missing == ("validation_Math_1", "validation_Physics_1")


def changed(small, tmp_path, **values):
    """The folder with other values in the one row of Art."""
    shutil.copytree(small / "mmmu", tmp_path / "mmmu")
    file = tmp_path / "mmmu/Art/validation-00000-of-00001.parquet"
    table = pq.read_table(file)
    for name, value in values.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([value], pa.string()))
    pq.write_table(table, file)
    return tmp_path / "mmmu"


@pytest.mark.parametrize(("values", "message"), [
    ({"answer": "E"}, "row 0 .id 'validation_Art_1'. has the answer 'E' to the options"),
    ({"options": "['a', 'b'"}, "has the answer 'A' to the options"),
    ({"answer": None}, "has the answer None"),
    ({"id": "validation_Math_1"}, "row 0, has the id 'validation_Math_1' of an earlier row"),
])  # fmt: skip
def test_a_damaged_row_is_named(small, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        MMMU.read(changed(small, tmp_path, **values))


def test_another_data_set_is_refused(small, tmp_path):
    with pytest.raises(UserError, match=r"holds no SUBJECT/validation-\*\.parquet"):
        MMMU.read(tmp_path)
    (tmp_path / "Art").mkdir()
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "Art/validation-00000-of-00001.parquet")
    with pytest.raises(UserError, match="no column 'question'"):
        MMMU.read(tmp_path)
    (tmp_path / "Art").rename(tmp_path / "Alchemy")
    with pytest.raises(UserError, match="Alchemy is named after no subject of MMMU"):
        MMMU.read(tmp_path)
