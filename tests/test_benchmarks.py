"""Each benchmark from end to end on a model that takes no time, its report, and what a benchmark may import."""

import json
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import pytest

from benchmarks import conversion, evaluation, inference, loading, methods, startup, training
from benchmarks.report import report
from benchmarks.shapes import PRESETS, small
from tests.test_imports import BLOCKED
from victor_jax.analysis import flops
from victor_jax.compression.spec import parse
from victor_jax.models.vlm import VLMModule

MODEL = small(256, layers=4, vision_layers=2, image_size=28)
TINY = replace(PRESETS["cpu"], config=MODEL, repeats=1, sizes=(64, 64), new_tokens=(2, 3))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of processes, as of this one
        patch.setattr(loading, "PHOTOS", 4)
        patch.setattr(loading, "ROWS", 64)  # all are read once
        for result in (
            inference.run("tiny", TINY, {2: ("full", "victor:registers=8,layer=3")}),
            training.run("tiny", TINY, (replace(training.STAGES["cpu"][1], text=40),)),
            methods.run("tiny", TINY, ("full", "victor:registers=8,layer=3", "fastv:keep=2,layer=2"), 2, {}),
            startup.run(MODEL),
            loading.run([0], steps=2),
            conversion.run("small", "orbax"),
        ):
            (folder / f"{result['benchmark']}.json").write_text(json.dumps(result))
    return folder


def test_a_result_says_where_it_comes_from(results):
    for file in results.glob("*.json"):
        result = json.loads(file.read_text())
        assert {"date", "device", "versions", "revision"} <= set(result["machine"])
        if result["benchmark"] in ("inference", "training"):
            assert result["peak"] > 0
            assert result["bandwidth"] > 0


def test_inference_times_every_part_of_full_and_victor(results):
    result = json.loads((results / "inference.json").read_text())
    full, victor = result["records"]
    assert (full["name"], victor["name"]) == ("full", "victor:registers=8,layer=3")
    assert full["lengths"] == [72]  # 64 words and 4 visual tokens, in whole eights
    assert victor["lengths"] == [80, 72]
    for record in (full, victor):
        assert set(record["seconds"]) == {"vision", "prefill", "answer 2", "answer 3"}
        assert min(record["seconds"].values()) > 0
        assert record["memory"] > record["cache_bytes_per_image"]


def test_methods_say_where_positions_go_and_what_that_costs(results):
    result = json.loads((results / "methods.json").read_text())
    full, victor, fastv = result["records"]
    assert [record["positions"] for record in (full, victor, fastv)] == [
        {"mean": 4, "final": 4},
        {"mean": (3 * 12 + 8) / 4, "final": 8},
        {"mean": 3, "final": 2},
    ]
    assert victor["parameters"] == 8 * MODEL.language.width
    assert full["parameters"] == fastv["parameters"] == 0
    module = VLMModule(MODEL, parse("full", MODEL))
    assert full["flops"] == flops.forward(module, flops.Work(2, (72,), images=2, head=1), "blocks")
    assert full["seconds"]["answer"] > full["seconds"]["prefill"] > 0


def test_training_times_the_step_and_accounts_for_memory(results):
    records = json.loads((results / "training.json").read_text())["records"]
    assert [record["name"] for record in records] == list(training.SPECS)
    for record in records:
        assert record["seconds"] > 0
        assert record["compile_seconds"] > 0
        assert record["model_flops"] < record["flops"]
        held = record["memory"]
        assert held["frozen"] < held["trained"]
        assert held["temporaries"] > held["trained"]  # gradients among them
        assert 2 * held["trained"] <= held["optimizer"] < 2.1 * held["trained"]  # two moments


def test_the_second_answer_of_a_fresh_process_compiles_nothing(results):
    result = json.loads((results / "startup.json").read_text())
    assert [record["cache"] for record in result["records"]] == ["empty", "warm"]
    for record in result["records"]:
        assert record["programs"]["first"] > 0
        assert record["programs"]["second"] == 0
        assert record["waited"] > record["seconds"]["load"] + record["seconds"]["first"]


def test_loading_reads_rows_as_training_does(results):
    result = json.loads((results / "loading.json").read_text())
    assert 400 < result["text_tokens"] < 1500  # six turns of two dozen words, in pieces of a small tokenizer
    (record,) = result["records"]
    assert record["workers"] == 0
    assert 1 < record["rows_per_second"] < 1e5


def test_conversion_is_measured_in_a_process_of_its_own(results):
    (record,) = json.loads((results / "conversion.json").read_text())["records"]
    assert record["name"] == "small, hf to orbax"
    assert 0 < record["bytes"] < record["peak"]
    assert record["seconds"] > 0


def test_questions_are_answered_as_by_hugging_face_and_timed_in_one_run():
    pytest.importorskip("torch")
    result = evaluation.run(None, 4, "float32", MODEL, specs=("full",), new_tokens=3)
    theirs, full = result["records"]
    assert (theirs["name"], full["name"]) == ("transformers, one by one", "full")
    assert full["same"] == 1
    assert min(theirs["seconds"], full["seconds"]) > 0
    assert full["first_seconds"] > full["seconds"]
    assert "| full |" in evaluation.tables(result)


def test_adapters_leave_the_tower_frozen():
    run_step, record = training.start(TINY, replace(training.ADAPTERS, text=40, rows=2), "full")
    assert jnp.isfinite(run_step())
    assert record["memory"]["trained"] < record["memory"]["frozen"]


def test_the_report_draws_every_result(results):
    text = report(results)
    for name in ("inference-speedup", "inference-split", "training-steps", "methods-methods"):
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table}) == 1  # as many cells in every row


MODULES = ("inference", "training", "methods", "startup", "loading", "conversion", "evaluation")


@pytest.mark.parametrize(("modules", "allowed"), [(MODULES, None), (["report"], "PIL")])  # matplotlib needs it
def test_benchmarks_import_the_model_code_alone(modules, allowed):
    block = "".join(f"sys.modules[{name!r}] = None; " for name in BLOCKED if name != allowed)
    imported = ", ".join(f"benchmarks.{module}" for module in modules)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {block}import {imported}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
