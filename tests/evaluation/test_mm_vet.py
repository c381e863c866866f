"""The official grades of LLaVA-1.5 are not kept here: totals of 31.2 (7B) and 36.1 (13B), of three runs 31.1 and 36.3,
as in its csv files; and the file for the grader is equal to LLaVA's for all 218 answers of each."""

import json

import pytest

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.mm_vet import MM_VET

ANSWERS = [Answer(number, f"answer {number}") for number in range(4)]


def graded(tmp_path, *runs):
    """As mm-vet_evaluator.py saves them."""
    grades = {f"v1_{n}": {"model": [], "content": [], "score": some} for n, some in enumerate(runs)}
    (tmp_path / "grades.json").write_text(json.dumps(grades))
    return tmp_path / "grades.json"


def score(small, answers, grades):
    return MM_VET.score(answers, grades, small / "mm-vet" / "mm-vet.json")


def test_grades_are_averaged_by_capability(small, tmp_path):
    result = score(small, ANSWERS, graded(tmp_path, [0.5, 1.0], [1.0, 1.0], [0.0, 0.0], [0.3, 0.1]))
    assert result.score == pytest.approx(100 * (0.75 + 1 + 0 + 0.2) / 4)
    assert result.parts == {"ocr": 75, "math": 75, "rec": pytest.approx(40)}


def test_a_question_without_an_answer_is_wrong_and_named(small, tmp_path):
    result = score(small, ANSWERS[1:], graded(tmp_path, [1.0], [1.0], [1.0], [1.0]))
    assert (result.score, result.missing) == (75, (0,))


@pytest.mark.parametrize(("runs", "message"), [
    (([1.0], [1.0], [1.0]), "v1_3 stands in one of .* alone"),
    (([1.0], [1.0], [1.0], []), "v1_3 has no list of grades from 0 to 1"),
    (([1.0], [1.0], [1.0], [7]), "v1_3 has no list of grades from 0 to 1"),
    (([1.0], [1.0], [1.0], ["1.0"]), "v1_3 has no list of grades from 0 to 1"),
])  # fmt: skip
def test_grades_that_are_missing_or_damaged_are_named(small, tmp_path, runs, message):
    with pytest.raises(UserError, match=message):
        score(small, ANSWERS, graded(tmp_path, *runs))


def test_the_questions_say_what_is_asked_for(small, tmp_path):
    with pytest.raises(UserError, match=r"mm-vet needs --questions=mm-vet\.json"):
        MM_VET.score(ANSWERS, graded(tmp_path, [1.0]))
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": {"question": "What?"}}))
    with pytest.raises(UserError, match="'v1_0' is no question of MM-Vet with imagename"):
        MM_VET.read(tmp_path / "mm-vet.json")


def test_the_grader_gets_every_question(small, tmp_path):
    questions = MM_VET.read(small / "mm-vet" / "mm-vet.json")
    assert (questions[0].id, questions[0].text, questions[0].images) == (0, "What is the sum?", ("v1_0.png",))
    file = MM_VET.submit(ANSWERS[:3], questions, small / "mm-vet", tmp_path)
    assert json.loads(file.read_text()) == {"v1_0": "answer 0", "v1_1": "answer 1", "v1_2": "answer 2", "v1_3": ""}
