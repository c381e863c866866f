"""Scores of predictions on small files in the formats that the benchmarks publish, against sums by hand.

The rules were also run on LLaVA's own outputs, which are not kept here: normalised VizWiz answers (8,000 of 8,000
equal), parsed ScienceQA answers (8,481 of 8,482), POPE of LLaVA-1.5-13B (mean F1 85.95, published 85.9).
"""

import json
import subprocess
import sys

import pytest

from victor_jax.cli import main
from victor_jax.cli import score as command
from victor_jax.errors import UserError
from victor_jax.evaluation import BENCHMARKS, mme, pope, scienceqa, vqa
from victor_jax.evaluation.answers import SHORT, read_answers
from victor_jax.evaluation.benchmark import score


@pytest.mark.parametrize(("said", "becomes"), [
    ("Yes.", "yes"), ("It's 5:00", "it 's 5:00"), ("Two dogs", "2 dogs"), ("the U.S. flag", "us flag"),
    ("1,000", "1000"), ("$5.00", "$5.00"), ("dont know", "don't know"), ("left-handed", "left handed"),
    ("a/b", "b"), ("St. Mary's", "st mary 's"), ("none", "0"), ("10 a.m.", "10 am"), ("3.5", "3.5"),
    ("No, it isn't.", "no it isn't"), ("white/ black", "white black"), ("hello , world", "hello world"),
    ('"Stop"', "stop"), ("e.g. this...", "eg this"), ("2,500 people", "2500 people"), ("Let's go", "let 's go"),
    ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("yalld've", "yalld've"), ("", ""),
])  # fmt: skip
def test_vqa_answers_are_normalised_as_the_server_does_it(said, becomes):
    assert vqa.normalised(said) == becomes


@pytest.mark.parametrize(("given", "credit"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_credit_grows_with_the_annotators_that_agree(given, credit):
    references = ["dog"] * given + ["cat"] * (10 - given)
    assert vqa.soft_score("dog", references) == pytest.approx(credit)


@pytest.mark.parametrize(("text", "yes"), [
    ("Yes", True), ("No", False), ("No, there is not.", False), ("There is not a dog", False), ("Nothing", True),
    ("Yes. No", True), ("", True), ("NO", True),
])  # fmt: skip
def test_pope_reads_the_first_sentence(text, yes):
    assert pope.said_yes(text) is yes


@pytest.mark.parametrize(("text", "verdict"), [
    ("Yes.", "yes"), ("y", "yes"), ("N", "no"), ("x", "other"), ("Not sure", "no"), ("yesterday", "yes"),
    ("I think no", "other"), ("", "other"),
])  # fmt: skip
def test_mme_looks_at_four_characters(text, verdict):
    assert mme.verdict(text) == verdict


@pytest.mark.parametrize(("text", "choice"), [
    ("B", 1), ("B. apostrophe", 1), ("b", None), ("The answer is C.", 2), ("The answer is A. The answer is B.", None),
    ("D", None), ("", None), ("AB", None),
])  # fmt: skip
def test_scienceqa_takes_a_letter_that_is_there(text, choice):
    assert scienceqa.chosen(text, choices=3) == choice


# --- files -----------------------------------------------------------------------------------------------------------


TEN = [{"answer": "dog"}] * 3 + [{"answer": "A cat."}] * 7


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def whole(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def predictions(folder, *rows):
    fields = ("question_id", "text", "prompt")
    return lines(folder / "predictions.jsonl", [dict(zip(fields, row, strict=False)) for row in rows])


def scored(name, folder, annotations, *rows, questions=None):
    return score(BENCHMARKS[name], read_answers(predictions(folder, *rows)), annotations, questions)


def vqav2(folder):
    rows = [
        {"question_id": n, "answers": TEN, "answer_type": kind} for n, kind in enumerate(["other", "other", "number"])
    ]
    return whole(folder / "v2_mscoco_val2014_annotations.json", {"annotations": rows})


def test_vqav2(tmp_path):
    found = scored("vqav2", tmp_path, vqav2(tmp_path), (0, "Dog"), (1, "cat"), (2, "bird"))
    assert found.score == pytest.approx(100 * (0.9 + 1 + 0) / 3)
    assert found.parts == {"other": pytest.approx(95), "number": 0}
    assert found.missing == ()


def test_what_is_missing_counts_as_wrong_and_is_named(tmp_path, capsys):
    given = predictions(tmp_path, (1, "cat"))
    assert main(["score", "vqav2", f"--predictions={given}", f"--annotations={vqav2(tmp_path)}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("score      33.33 %\nother      50.00 %\n")
    assert "3 questions, 2 without a prediction, counted as wrong: 0, 2" in printed


def test_vizwiz_knows_images_by_name_and_by_place(tmp_path):
    rows = [{"image": f"VizWiz_val_{n}.jpg", "answers": TEN} for n in range(2)]
    file = whole(tmp_path / "val.json", rows)
    assert scored("vizwiz", tmp_path, file, (0, "dog"), ("VizWiz_val_1.jpg", "cat")).score == pytest.approx(95)


def test_textvqa_finds_the_question_in_the_prompt(tmp_path):
    answers = ["nike"] * 10
    rows = [{"image_id": "a", "question": q, "answers": answers} for q in ("What Brand?", "what colour?")]
    file = whole(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    ask = "Answer the question using a single word or phrase."
    prompts = f"What brand?\nReference OCR token: NIKE, air\n{ask}", f"What colour?\n{ask}"
    found = scored("textvqa", tmp_path, file, ("a", "Nike", prompts[0]), ("a", "red", prompts[1]))
    assert found.score == pytest.approx(50)
    tokens_first = f"Reference OCR token: NIKE\nWhat brand?\n{ask}"
    assert scored("textvqa", tmp_path, file, ("a", "Nike", tokens_first)).score == pytest.approx(50)


def test_gqa(tmp_path):
    rows = {"7": {"answer": "yes", "types": {"structural": "verify"}}, "8": {"answer": "red", "types": {}}}
    found = scored("gqa", tmp_path, whole(tmp_path / "q.json", rows), (7, "Yes."), ("8", "a red one"))
    assert (found.score, found.parts) == (50, {"verify": 100})


def test_seed_bench_counts_images_and_videos(tmp_path):
    kinds = {"Scene Understanding": 1, "Action Recognition": 10}
    rows = [
        {"question_id": name, "question_type_id": kind, "data_type": data, "answer": "B"}
        for name, kind, data in (("1", 1, "image"), ("2", 1, "image"), ("v3", 10, "video"))
    ]
    file = whole(tmp_path / "SEED-Bench.json", {"questions": rows, "question_type": kinds})
    found = scored("seed-bench", tmp_path, file, (1, "B"), ("2", "C"), ("v3", "B"))
    assert found.score == pytest.approx(200 / 3)
    assert found.parts == {"image": 50, "video": 100, "Scene Understanding": 50, "Action Recognition": 100}


def test_scienceqa_quotes_the_questions_with_an_image(tmp_path):
    choices = ["x", "y", "z"]
    problems = {n: {"answer": 1, "choices": choices, "image": image} for n, image in (("4", "i.png"), ("9", None))}
    whole(tmp_path / "problems.json", problems)
    whole(tmp_path / "pid_splits.json", {"test": ["4", "9"]})
    found = scored("scienceqa", tmp_path, tmp_path, ("4", "B", "<image>\nWhich?"), ("9", "A", "Which?"))
    assert (found.score, found.parts) == (100, {"all": 50})
    assert scored("scienceqa", tmp_path, tmp_path, (4, "B"), (9, "B")).parts == {"all": 100}


def coco_pope(folder):
    """Labels, and questions in the order of LLaVA's file."""
    rows = [
        {"question_id": n, "image": "COCO_val2014_1.jpg", "text": f"Is there a {thing} in the image?", "label": label}
        for n, (thing, label) in enumerate((("dog", "yes"), ("cat", "no"), ("bus", "yes")), 1)
    ]
    questions = []
    for split in ("adversarial", "popular", "random"):
        lines(folder / "coco" / f"coco_pope_{split}.json", rows)
        for row in rows:
            asked = {"image": row["image"], "text": row["text"] + SHORT, "category": split}
            questions.append({"question_id": len(questions) + 1} | asked)
    lines(folder / "llava_pope_test.jsonl", questions)
    return folder / "coco", folder / "llava_pope_test.jsonl"


def test_pope_is_the_mean_f1_of_three_splits(tmp_path):
    annotations, questions = coco_pope(tmp_path)
    answers = [*["No"] * 3, *["Yes"] * 3, "Yes", "No", "No"]
    found = scored("pope", tmp_path, annotations, *enumerate(answers, 1), questions=questions)
    assert found.parts["random F1"] == pytest.approx(100 * 2 / 3)  # one hit, one missed
    assert found.parts["popular F1"] == pytest.approx(80)
    assert found.parts["adversarial F1"] == 0
    assert found.parts["popular said yes"] == 100
    assert found.score == pytest.approx((200 / 3 + 80) / 3)
    assert scored("pope", tmp_path, annotations, (7, "Yes"), questions=questions).parts["random accuracy"] == \
        pytest.approx(100 / 3)  # fmt: skip


def test_pope_notices_labels_of_another_version(tmp_path):
    annotations, questions = coco_pope(tmp_path)
    lines(annotations / "coco_pope_popular.json", [{"image": "b.jpg", "text": "Is there a dog?", "label": "yes"}])
    with pytest.raises(UserError, match=r"question 4 of .* has no label in .*coco_pope_popular.json"):
        scored("pope", tmp_path, annotations, (0, "Yes"), questions=questions)


def mme_folder(folder):
    """MME_Benchmark_release_version: two questions about one image in each category."""
    for category in (*mme.PERCEPTION, *mme.COGNITION):
        nested = category in ("artwork", "celebrity", "landmark", "posters", "scene")
        texts = "questions_answers_YN" if nested else ""
        (folder / category / texts).mkdir(parents=True)
        (folder / category / texts / "0001.txt").write_text(
            f"Is this a {category}?  Please answer yes or no.\tYes\nIs this a cow? Please answer yes or no.\tNo\n"
        )
    return folder


def test_mme_counts_pairs_again(tmp_path):
    folder = mme_folder(tmp_path / "MME_Benchmark_release_version")
    ask = "\nAnswer the question using a single word or phrase."
    given = [
        (f"{category}/images/0001.jpg", text, question + ask)
        for category in (*mme.PERCEPTION, *mme.COGNITION)
        for question, text in (
            (f"Is this a {category}?", "Yes"),
            ("Is this a cow?", "no" if category != "OCR" else "Yes"),
        )
    ]
    found = scored("mme", tmp_path, folder, *given)
    assert found.score == 9 * 200 + 50
    assert (found.parts["cognition"], found.parts["OCR"]) == (800, 50)
    assert found.unit == "points"
    (folder / "OCR" / "0001.txt").write_text("Is this a OCR? Please answer yes or no.\tYes\n")
    with pytest.raises(UserError, match="image 0001 of OCR has 1 questions: expected two"):
        scored("mme", tmp_path, folder, *[one for one in given if "cow" not in one[2] or "OCR" not in one[0]])


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no predictions"),
    ("{", "line 1 is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ('[1]', "entry 0 holds a int"),
    ('{"text": "a"}', "question_id=None"),
    ('{"question_id": 1, "text": 3}', "text=3: expected a text"),
    ('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}', "question 1 has two predictions"),
    ('{"question_id": 77, "text": "a"}', "prediction of 77 answers no question"),
])  # fmt: skip
def test_bad_predictions_are_one_sentence(tmp_path, capsys, text, message):
    file = tmp_path / "predictions.jsonl"
    file.write_text(text)
    assert main(["score", "vqav2", f"--predictions={file}", f"--annotations={vqav2(tmp_path)}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("name", sorted({name for name, one in BENCHMARKS.items() if one.score} - {"pope", "mm-vet"}))
def test_annotations_of_another_benchmark_are_noticed(tmp_path, name):
    other = whole(tmp_path / "problems.json", {"1": {"question": "?"}})
    with pytest.raises(UserError, match=str(tmp_path)):
        scored(name, tmp_path, tmp_path if name in ("mme", "scienceqa") else other, (1, "a"))


def test_pope_asks_for_the_question_file(tmp_path):
    with pytest.raises(UserError, match="pope needs --questions"):
        command.main(["pope", f"--predictions={predictions(tmp_path, (0, 'Yes'))}", f"--annotations={tmp_path}"])


def test_scoring_imports_no_jax(tmp_path):
    code = (
        "import sys, victor_jax.cli.score; print(*{m.split('.')[0] for m in sys.modules} & {'jax', 'numpy', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("", 0)
