"""Every benchmark that is scored by what it publishes, from its files to prompts, and from answers to a score and a
submission. Those that come with pictures or need a judge have tests of their own."""

import json
import shutil

import pytest

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import LETTER, SHORT, Answer
from victor_jax.evaluation.runner import result_of
from victor_jax.evaluation.tasks import open_tasks
from victor_jax.evaluation.vizwiz import UNANSWERABLE

CHOICES = "\nA. red\nB. green\nC. blue\nD. yellow"


def task(data, name, **options):
    (found,), _ = open_tasks(name, data, **options)
    return found


def result(data, name, out, *texts, **options):
    """The last text answers all questions that are left."""
    found = task(data, name, **options)
    given = [*texts, *texts[-1:] * (len(found.questions) - len(texts))]
    return result_of(
        found, [Answer(one.id, text, one.text) for one, text in zip(found.questions, given, strict=True)], out
    )


@pytest.mark.parametrize(
    ("name", "text", "image"),
    [
        ("vqav2", f"What color is the circle?{SHORT}", "COCO_test2015_000000000001.jpg"),
        ("vqav2-val", f"What color is the circle?{SHORT}", "COCO_val2014_000000000001.jpg"),
        ("gqa", f"What shape is red?{SHORT}", "n1.jpg"),
        ("vizwiz", f"What is this?{UNANSWERABLE}{SHORT}", "VizWiz_test_00000000.jpg"),
        ("vizwiz-val", f"What is this?{UNANSWERABLE}{SHORT}", "VizWiz_val_00000000.jpg"),
        ("textvqa", f"What does the sign say?\nReference OCR token: STOP{SHORT}", f"{0:016}.jpg"),
        ("textvqa-no-ocr", f"What does the sign say?{SHORT}", f"{0:016}.jpg"),
        ("scienceqa", f"<image>\nWhich color do you see?{CHOICES}{LETTER}", "4/image.png"),
        ("pope", f"Is there a circle in the image?{SHORT}", "COCO_val2014_000000000001.jpg"),
        ("mme", f"Is the circle red?{SHORT}", "posters/images/0001.png"),
        ("seed-bench", f"What is the color of the circle?{CHOICES}{LETTER}", "SEED-Bench-image/0_1.png"),
    ],
)
def test_the_model_is_asked_what_llava_asks(small, name, text, image):
    first = task(small, name).questions[0]
    assert (first.text, first.images) == (text, (image,))


def test_a_question_of_scienceqa_without_a_picture_has_no_mark_of_one(small):
    last = task(small, "scienceqa").questions[-1]
    assert (last.text, last.images) == (f"Which of these is a metal?\nA. water\nB. iron{LETTER}", ())


def test_all_runs_what_is_there_and_says_what_is_not(small, tmp_path):
    _, absent = open_tasks("all", small)
    assert [sentence.split(": ")[0] for sentence in absent] == ["digits"]
    assert f"there is no {small}/digits/questions.jsonl" in absent[0]
    with pytest.raises(UserError, match="holds no benchmark; the first that was looked for: vqav2: there is no"):
        open_tasks("all", tmp_path)


def test_what_is_asked_decides_the_digest(small):
    names = "textvqa", "textvqa-no-ocr"
    assert len({task(small, name).digest for name in names} | {task(small, "textvqa", limit=1).digest}) == 3


def test_vqav2_is_submitted_with_all_questions_of_test2015(small, tmp_path):
    found = result(small, "vqav2", tmp_path, "Two dogs.", "the cat")
    assert (found["score"], found["submission"]) == (None, "vqav2_test2015_results.json")
    rows = json.loads((tmp_path / found["submission"]).read_text())
    assert [(row["question_id"], row["answer"]) for row in rows] == [
        (7, ""), (1000, "2 dogs"), (2000, "cat"), (3000, "cat"), (4000, "cat"),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), [("vqav2-val", ("Red.", "a toy")), ("vizwiz-val", ("Circle.", "a toy"))])
def test_vqav2_and_vizwiz_are_scored_on_val(small, tmp_path, name, said):
    assert result(small, name, tmp_path, *said)["score"] == pytest.approx((100 + 3 * 30) / 4)


def test_vizwiz_is_submitted_by_image(small, tmp_path):
    found = result(small, "vizwiz", tmp_path, "A Laptop.", "Unanswerable")
    rows = json.loads((tmp_path / found["submission"]).read_text())
    assert rows[:2] == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "laptop"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "unanswerable"},
    ]


def test_gqa_is_scored_and_written_for_its_own_script(small, tmp_path):
    found = result(small, "gqa", tmp_path, "Circle.", "Blob")
    assert (found["score"], found["parts"]) == (25, {"query": 25})
    rows = json.loads((tmp_path / "testdev_balanced_predictions.json").read_text())
    assert rows[:2] == [{"questionId": "20241", "prediction": "circle"}, {"questionId": "20242", "prediction": "blob"}]


@pytest.mark.parametrize("name", ["textvqa", "textvqa-no-ocr"])
def test_textvqa_is_scored_with_and_without_tokens(small, tmp_path, name):
    assert result(small, name, tmp_path, "Stop", "exit", "no")["score"] == pytest.approx(50)


def test_scienceqa_quotes_what_has_an_image(small, tmp_path):
    found = result(small, "scienceqa", tmp_path, "A", "B. green", "C", "D", "A")
    assert (found["score"], found["parts"], found["questions"]) == (100, {"all": 80}, 5)


def test_pope_and_the_first_questions_of_it(small, tmp_path):
    found = result(small, "pope", tmp_path, *["Yes", "No"] * 12)
    assert found["score"] == 100
    first = result(small, "pope", tmp_path, "Yes", "No", limit=2)
    assert (first["score"], first["questions"], first["missing"]) == (100, 2, 0)


def test_mme_is_scored_and_written_for_its_own_script(small, tmp_path):
    found = result(small, "mme", tmp_path, *["Yes", "No"] * 14)
    assert (found["score"], found["unit"], found["parts"]["cognition"]) == (2000, "points", 800)
    assert (tmp_path / "eval_tool_answers" / "posters.txt").read_text() == (
        "0001.txt\tIs the circle red? Please answer yes or no.\tYes\tYes\n"
        "0001.txt\tIs the circle green? Please answer yes or no.\tNo\tNo\n"
    )


def test_seed_bench_counts_videos(small, tmp_path):
    found = result(small, "seed-bench", tmp_path, "A", "B", "C", "X")
    assert (found["score"], found["parts"]["image"], found["parts"]["video"]) == (75, 100, 0)
    assert '{"question_id": "101669", "prediction": "A"}' in (tmp_path / found["submission"]).read_text()


@pytest.mark.parametrize(
    ("name", "file", "content", "sentence"),
    [
        (
            "gqa",
            "data/testdev_balanced_questions.json",
            {"77": {"answer": "no"}},
            "prediction of '20241' answers no",
        ),
        ("textvqa", "TextVQA_0.5.1_val.json", {"annotations": []}, "no annotation file of this benchmark"),
        ("vqav2-val", "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": []}, "expected rows with"),
        (
            "vizwiz-val",
            "val.json",
            [{"image": "a.jpg", "question": 3, "answers": []}],
            "is not what vizwiz-val publishes",
        ),
        ("scienceqa", "llava_test_CQM-A.json", [{"id": "4", "conversations": []}], "row 0 has no first turn"),
        (
            "pope",
            "coco/coco_pope_random.json",
            {"image": "b.jpg", "text": "Is?", "label": "no"},
            "of different versions",
        ),
        ("seed-bench", "SEED-Bench.json", {"questions": [{"question_id": 1}], "question_type": {}}, "is not what seed"),
    ],
)
def test_files_that_do_not_belong_together_are_found_before_anything_is_asked(
    small, tmp_path, name, file, content, sentence
):
    folder = task(small, name).folder
    shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / folder.name / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{tmp_path}.*{sentence}|{sentence}.*{tmp_path}"):
        task(tmp_path, name)


def test_half_of_a_pair_of_mme_is_not_scored(small):
    with pytest.raises(UserError, match="image 0001 of posters has 1 questions: expected two"):
        task(small, "mme", limit=1)
