"""Every benchmark, from the files that are published to prompts, and from answers to a score and a submission."""

import json
import shutil

import published
import pytest
from published import LETTER, SHORT, UNANSWERABLE

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.runner import result_of
from victor_jax.evaluation.tasks import open_tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, write in published.FOLDERS.items():
        write(folder / name)
    return folder


def task(data, name, **options):
    (found,), _ = open_tasks(name, data, **options)
    return found


def result(data, name, out, *texts, **options):
    found = task(data, name, **options)
    answers = [Answer(question.id, text, question.text) for question, text in zip(found.questions, texts, strict=True)]
    return result_of(found, answers, out)


@pytest.mark.parametrize(
    ("name", "text", "images"),
    [
        ("vqav2", f"What is 262144000?{SHORT}", ("COCO_test2015_000262144000.jpg",)),
        ("vqav2-val", f"What is it?{SHORT}", ("COCO_val2014_000000000042.jpg",)),
        ("gqa", f"Is it overcast?{SHORT}", ("n161313.jpg",)),
        ("vizwiz", f"What is this? {UNANSWERABLE}{SHORT}", ("VizWiz_test_00000000.jpg",)),
        ("vizwiz-val", f"What now?{UNANSWERABLE}{SHORT}", ("VizWiz_val_00000000.jpg",)),
        ("textvqa", f"What Brand?\nReference OCR token: NIKE, air{SHORT}", ("003a.jpg",)),
        ("textvqa-no-ocr", f"What Brand?{SHORT}", ("003a.jpg",)),
        ("scienceqa", f"Which?\nA. x\nB. y{LETTER}", ()),
        ("pope", f"Is there a dog in the image?{SHORT}", ("COCO_val2014_1.jpg",)),
        ("mme", f"Is this a commonsense_reasoning?{SHORT}", ("commonsense_reasoning/0001.jpg",)),
        ("seed-bench", f"How many?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}", ("SEED-Bench-image/1_2",)),
    ],
)
def test_the_model_is_asked_what_llava_asks(data, name, text, images):
    found = task(data, name)
    first = found.questions[0]
    assert (first.text, first.images) == (text, images)
    assert all(found.picture(image).startswith(b"\x89PNG") for image in images)


def test_a_picture_stands_before_the_question_of_scienceqa(data):
    second = task(data, "scienceqa").questions[1]
    assert second.text == f"<image>\nContext: It is.\nWhat?\nA. x\nB. y{LETTER}"
    assert second.images == ("5/image.png",)


def test_all_runs_what_is_there_and_says_what_is_not(data, tmp_path):
    found, absent = open_tasks("all", data)
    assert len(found) == 11
    assert any(sentence.startswith(f"digits: there is no {data}/digits/questions.jsonl") for sentence in absent)
    with pytest.raises(UserError, match="holds no benchmark; the first that was looked for: vqav2: there is no"):
        open_tasks("all", tmp_path)


def test_what_is_asked_decides_the_digest(data):
    names = "textvqa", "textvqa-no-ocr"
    assert len({task(data, name).digest for name in names} | {task(data, "textvqa", limit=1).digest}) == 3


def test_vqav2_is_submitted_with_all_questions_of_test2015(data, tmp_path):
    found = result(data, "vqav2", tmp_path, "Two dogs.", "the cat")
    assert (found["score"], found["submission"]) == (None, "vqav2_test2015_results.json")
    rows = json.loads((tmp_path / found["submission"]).read_text())
    assert [(row["question_id"], row["answer"]) for row in rows] == [
        (262144002, "cat"), (7, ""), (262144000, "2 dogs"),
    ]  # fmt: skip


def test_vqav2_and_vizwiz_are_scored_on_val(data, tmp_path):
    for name in ("vqav2-val", "vizwiz-val"):
        assert result(data, name, tmp_path, "Dog.")["score"] == pytest.approx(90)


def test_vizwiz_is_submitted_by_image(data, tmp_path):
    found = result(data, "vizwiz", tmp_path, "A Laptop.", "Unanswerable")
    rows = json.loads((tmp_path / found["submission"]).read_text())
    assert rows == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "laptop"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "unanswerable"},
    ]


def test_gqa_is_scored_and_written_for_its_own_script(data, tmp_path):
    found = result(data, "gqa", tmp_path, "No.", "Woman")
    assert (found["score"], found["parts"]) == (50, {"verify": 100, "query": 0})
    rows = json.loads((tmp_path / "testdev_balanced_predictions.json").read_text())
    assert rows == [{"questionId": "201307251", "prediction": "no"}, {"questionId": "8", "prediction": "woman"}]


@pytest.mark.parametrize("name", ["textvqa", "textvqa-no-ocr"])
def test_textvqa_is_scored_with_and_without_tokens(data, tmp_path, name):
    assert result(data, name, tmp_path, "Nike", "blue")["score"] == pytest.approx(50)


def test_scienceqa_quotes_what_has_an_image(data, tmp_path):
    found = result(data, "scienceqa", tmp_path, "A", "B. y")
    assert (found["score"], found["parts"], found["questions"]) == (100, {"all": 50}, 2)


def test_pope_and_the_first_questions_of_it(data, tmp_path):
    found = result(data, "pope", tmp_path, *["Yes", "No", "Yes"] * 3)
    assert found["score"] == 100
    first = result(data, "pope", tmp_path, "Yes", "No", limit=2)
    assert (first["score"], first["questions"], first["missing"]) == (100, 2, 0)


def test_mme_is_scored_and_written_for_its_own_script(data, tmp_path):
    found = result(data, "mme", tmp_path, *["Yes", "No"] * 14)
    assert (found["score"], found["unit"], found["parts"]["cognition"]) == (2000, "points", 800)
    assert (tmp_path / "eval_tool_answers" / "artwork.txt").read_text() == (
        "0001.txt\tIs this a artwork?  Please answer yes or no.\tYes\tYes\n"
        "0001.txt\tIs this a cow? Please answer yes or no.\tNo\tNo\n"
    )


def test_seed_bench_knows_numbers_and_texts(data, tmp_path):
    found = result(data, "seed-bench", tmp_path, "B", "A")
    assert (found["score"], found["parts"]["image"], found["parts"]["video"]) == (50, 100, 0)
    assert '{"question_id": "101669", "prediction": "B"}' in (tmp_path / found["submission"]).read_text()


@pytest.mark.parametrize(
    ("name", "file", "content", "sentence"),
    [
        (
            "gqa",
            "data/testdev_balanced_questions.json",
            {"77": {"answer": "no"}},
            "prediction of '201307251' answers no",
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
    data, tmp_path, name, file, content, sentence
):
    folder = task(data, name).folder
    shutil.copytree(folder, tmp_path / folder.name)
    published.whole(tmp_path / folder.name / file, content)
    with pytest.raises(UserError, match=f"{tmp_path}.*{sentence}|{sentence}.*{tmp_path}"):
        task(tmp_path, name)


def test_half_of_a_pair_of_mme_is_not_scored(data):
    with pytest.raises(UserError, match="image 0001 of commonsense_reasoning has 1 questions: expected two"):
        task(data, "mme", limit=1)
