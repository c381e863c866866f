"""LLaVA's own reviews of LLaVA-1.5, three for each size, are not kept here: 64.8, 65.3, 66.3 (7B) and 72.8, 72.7, 72.1
(13B), as its summarize_gpt_review.py prints them."""

import json
import shutil

import pytest

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.llava_wild import LLAVA_W

ANSWERS = [Answer(number, f"answer {number}") for number in range(4)]


def reviews(tmp_path, *first_lines):
    """As LLaVA's script writes them: its categories in turn."""
    rows = [
        {"id": n + 1, "question_id": n, "category": f"llava_bench_{('conv', 'detail', 'complex')[n % 3]}",
         "content": f"{line}\nFor these reasons."}
        for n, line in enumerate(first_lines)
    ]  # fmt: skip
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "reviews.jsonl"


def test_the_score_is_the_ratio_of_the_sums(tmp_path):
    result = LLAVA_W.score(ANSWERS, reviews(tmp_path, "8 7.5", "10, 5", "9 9", "10 2"))
    assert result.score == pytest.approx(100 * 23.5 / 37)
    assert result.parts == {"conv": pytest.approx(100 * 9.5 / 18), "detail": 50, "complex": 100}


def test_a_question_without_an_answer_gets_no_points_and_is_named(tmp_path):
    result = LLAVA_W.score(ANSWERS[1:], reviews(tmp_path, "8 8", "8 8", "8 8", "8 8"))
    assert (result.score, result.missing) == (75, (0,))


@pytest.mark.parametrize(("lines", "message"), [
    (("8 8", "8 8", "8 8"), "question 3 has no review: judge it first"),
    (("8 8", "Both are good.", "8 8", "8 8"), "line 2, reviews question 1 and begins with 'Both are good."),
    (("8 8", "8", "8 8", "8 8"), "line 2, reviews question 1 and begins with '8"),
    (("8 8", "8 80", "8 8", "8 8"), "line 2, reviews question 1 and begins with '8 80"),
])  # fmt: skip
def test_a_review_that_says_nothing_is_no_score(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        LLAVA_W.score(ANSWERS, reviews(tmp_path, *lines))


def test_a_second_review_is_an_error(tmp_path):
    file = reviews(tmp_path, "8 8", "8 8", "8 8", "8 8")
    file.write_text(file.read_text() * 2)
    with pytest.raises(UserError, match="line 5, is a second review of question 0"):
        LLAVA_W.score(ANSWERS, file)


def test_the_judge_is_asked_as_llava_asks_it(small, tmp_path):
    folder = small / "llava-bench-in-the-wild"
    questions = LLAVA_W.read(folder / "questions.jsonl")
    assert questions[0].text == "What color is it?"  # nothing is added
    file = LLAVA_W.submit(ANSWERS[:1], questions, folder, tmp_path)
    first, second, *_ = map(json.loads, file.read_text().splitlines())
    assert (first["question_id"], first["category"], first["model"]) == (0, "llava_bench_conv", "gpt-4-0314")
    assert first["messages"] == [
        {
            "role": "system",
            "content": "You are a helpful and precise assistant for checking the quality of the answer.",
        },
        {
            "role": "user",
            "content": "[Context]\nA red circle on a grey ground.\n\n[Question]\nWhat color is it?\n\n"
            "[Assistant 1]\nA red circle on a grey ground.\n\n[End of Assistant 1]\n\n"
            "[Assistant 2]\nanswer 0\n\n[End of Assistant 2]\n\n"
            "[System]\nRate both answers from 1 to 10: two numbers on the first line, your reasons on the next.\n\n",
        },
    ]
    assert "[Assistant 2]\n\n\n[End of Assistant 2]" in second["messages"][1]["content"]


@pytest.mark.parametrize(("file", "message"), [
    ("context.jsonl", "context.jsonl has nothing for '002.jpg', of question 1"),
    ("answers_gpt4.jsonl", "answers_gpt4.jsonl has nothing for 1, of question 1"),
    ("rule.json", "rule.json is not JSON"),
])  # fmt: skip
def test_what_the_judge_needs_is_looked_for_before_a_model_is_asked(small, tmp_path, file, message):
    folder = tmp_path / "llava"
    shutil.copytree(small / "llava-bench-in-the-wild", folder)
    kept = (folder / file).read_text().splitlines()[0]  # one line of several
    (folder / file).write_text(kept if file.endswith(".jsonl") else kept[:-1])
    with pytest.raises(UserError, match=message):
        LLAVA_W.read(folder / "questions.jsonl")
