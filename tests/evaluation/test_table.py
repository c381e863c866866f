"""What one table says of several benchmarks."""

import pytest

from victor_jax.evaluation.table import PAPER, as_table, mean_of_paper, retained

SETTINGS = {
    "model": "model",
    "model_files": "abc",
    "compression": "victor:registers=8,layer=3",
    "template": "vicuna_v1",
    "aspect": "pad",
    "dtype": "bfloat16",
    "decoding": {"method": "greedy", "max_new_tokens": 128},
    "batch_size": 16,
    "devices": 4,
    "device": "TPU v5e",
    "ocr": False,
    "with_images": True,
    "questions_sha256": "0123456789abcdef",
    "revision": "0.2.0 (abc)",
    "versions": {"jax": "0.10"},
}


def result(name, score, **changes):
    fields = {"unit": "%", "full_marks": 100.0, "parts": {}, "questions": 10, "missing": 0, "first_missing": ""}
    rest = {"submission": "", "judged": "", "settings": SETTINGS}
    return {"benchmark": name, "score": score} | fields | rest | changes


def mme(score):
    return result("mme", score, unit="points", full_marks=2000.0)


def by_name(*results):
    return {one["benchmark"]: one for one in results}


def test_the_mean_normalises_mme_and_says_which_are_there():
    said = mean_of_paper(
        [result("gqa", 60.0), mme(1500.0), result("textvqa-no-ocr", 1.0), result("vqav2", None)], {}, {}
    )
    assert said.startswith("mean of 2 of the paper's 12 benchmarks, normalised: 67.50% (without vqav2, vizwiz, ")
    assert "gqa" not in said
    assert "mme" not in said


def test_val_stands_in_for_a_split_that_a_server_scores():
    rest = [result(names[0], 50.0) for names in PAPER if names[0] != "vqav2"]
    said = mean_of_paper([result("vqav2", None), result("vqav2-val", 50.0), *rest], {}, {})
    assert said == "mean of 12 of the paper's 12 benchmarks, normalised: 50.00% (with vqav2-val for vqav2)"


def test_what_is_retained_is_measured_above_the_floor():
    full, floor = by_name(result("gqa", 60.0), mme(1500.0)), by_name(result("gqa", 40.0))
    assert retained(result("gqa", 55.0), full, floor) == pytest.approx(0.75)
    assert retained(result("gqa", 55.0), full, None) == pytest.approx(55 / 60)
    assert retained(mme(1200.0), full, floor) is None
    assert retained(result("gqa", 55.0), by_name(result("gqa", 40.0)), floor) is None, "nothing is above the floor"
    said = mean_of_paper([result("gqa", 55.0), mme(1200.0)], full, floor)
    assert said.endswith(f"; {(0.55 + 0.6) / (0.6 + 0.75):.1%} of full's, of 2; 75.0% above the floor, the mean of 1")


def test_a_number_stands_beside_what_it_was_measured_under(tmp_path):
    results = [
        result("textvqa", 58.2, settings=SETTINGS | {"ocr": True}),
        result("vizwiz", None, submission="vizwiz_test_results.json"),
        result("mm-vet", None, submission="mm-vet.json", judged="grades.json"),
        result("vqav2", None),
        result("pope", 85.9, parts={"random F1": 87.3}, missing=2, first_missing="3, 4"),
    ]
    text = as_table(results, {}, {}, tmp_path)
    assert "| textvqa   | 58.20           | %    | 10        | 0       | 128        | yes | 0123456789ab      |" in text
    assert "| vizwiz    | not scored here |" in text
    assert f"vizwiz: {tmp_path}/vizwiz/vizwiz_test_results.json is for its server" in text
    assert f"put what it answers in {tmp_path}/mm-vet/grades.json and give the same command again" in text
    assert "vqav2: it takes all questions to have a score" in text
    assert "pope: random F1 87.30" in text
    assert "pope: 2 questions were not asked, counted as wrong: 3, 4" in text
    for part in (
        "victor:registers=8,layer=3",
        "vicuna_v1",
        "bfloat16, greedy",
        "4 x TPU v5e",
        "victor_jax 0.2.0 (abc)",
    ):
        assert part in text


def test_benchmarks_that_were_asked_under_other_conditions_say_so(tmp_path):
    results = [result("gqa", 1.0), result("pope", 2.0), result("mmmu", 3.0, settings=SETTINGS | {"revision": "0.1.0"})]
    *_, two, one = as_table(results, {}, {}, tmp_path).splitlines()
    assert two.startswith("gqa, pope: model (files abc)")
    assert one.startswith("mmmu: model (files abc)")
    assert "0.1.0" in one
