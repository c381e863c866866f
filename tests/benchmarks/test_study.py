"""The study: its grid fits its models, verdicts follow from results, and the page says what was not measured."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.study import __main__ as study
from benchmarks.study import grid
from benchmarks.study.__main__ import DOCUMENT
from benchmarks.study.claims import CLAIMS, FAILS, HOLDS, MISSING, OPEN, STEPS, Claim
from benchmarks.study.cut import cut
from benchmarks.study.effects import cost_to_reach, gain, kept, loss, saved
from benchmarks.study.grid import SIZES, chosen, points, setting, trainings
from benchmarks.study.measure import Workplace, accuracies, lengthened, trained_stage
from benchmarks.study.records import RESULTS, Estimate, Results, write
from benchmarks.study.report import filled, measured, page, report, verdicts
from examples.quickstart.questions import KINDS
from examples.quickstart.report import positions
from examples.quickstart.sight import tiny
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.weights import fresh
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint


def record(point, seed, accuracy, steps=None, flops=100, per_step=10, timed=True, device="cpu", size="small"):
    stage = {"steps": 10, "flops_per_step": per_step, "loss": [2.0, 1.0]}
    stage |= {"seconds_per_step": per_step / 2} if timed else {}
    return {
        "size": size,
        "point": point,
        "seed": seed,
        "asked": "full",
        "accuracy": {"all": accuracy, "steps": {str(n): accuracy for n in (1, 2, 3)} | (steps or {})},
        "flops": flops,
        "training": {"pretrain": stage, "finetune": stage},
        "where": {"date": "2026-01-01", "revision": "abc", "device": device, "python": "3.11", "jax": "0.10"},
        "setting": setting(size, point),
    }


def results(*records):
    return Results({(one["point"], one["seed"]): one for one in records})


def of_seeds(point, *accuracies, **more):
    return [record(point, seed, accuracy, **more) for seed, accuracy in enumerate(accuracies)]


class Words:
    """What a model's architecture takes from its tokenizer."""

    pad_token_id, eos_token_id = 0, 2

    def __len__(self):
        return 300


def model(size):
    return tiny(size.task, Words(), depth=size.depth)


# --- the grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_compression_fits_the_model_of_its_size(size):
    of = SIZES[size]
    config = model(of)
    every = points(of)
    assert config.features_per_image == of.tokens
    for name, training in trainings(of).items():
        assert parse(training.compression, config).spec, name
    for name, point in every.items():
        assert point.training in trainings(of), name
        if point.asked:
            parse(point.asked, config)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_size_asks_questions_of_every_number_of_steps(size):
    assert {KINDS[kind].steps for kind in size.task.kinds} == set(STEPS)


def test_claims_ask_for_points_of_the_grid():
    every = points(SIZES["small"])
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert set(claim.effect.points) <= every.keys(), claim.name


def test_a_resampler_gets_the_compute_of_eight_registers():
    of = SIZES["small"]
    config = model(of)
    victor, perceiver = (
        sum(positions(parse(trainings(of)[name].compression, config), config)) for name in ("victor-8-k3", "perceiver")
    )
    assert victor <= perceiver < victor * 1.05


def test_names_are_chosen_by_pattern():
    assert chosen("a-*,c", ["a-1", "b", "a-2", "c"], "point") == ["a-1", "a-2", "c"]
    with pytest.raises(UserError, match="no point is named 'd': known are a, b"):
        chosen("a,d", ["a", "b"], "point")


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_an_interval_is_that_of_student():
    found = Estimate.over([1.0, 2.0, 3.0])
    assert (found.seeds, found.mean) == (3, 2.0)
    assert found.half == pytest.approx(4.302652729696 * 1 / 3**0.5)  # t of two degrees of freedom, deviation 1
    assert Estimate.over([]) is None


@pytest.mark.parametrize(
    ("one", "other", "side", "verdict"),
    [
        ((0.90, 0.91, 0.92), (0.80, 0.81, 0.82), ">", HOLDS),
        ((0.90, 0.91, 0.92), (0.80, 0.81, 0.82), "<", FAILS),
        ((0.80, 0.81, 0.82), (0.80, 0.81, 0.82), ">", FAILS),  # no difference is no gain
        ((0.80, 0.81, 0.82), (0.80, 0.81, 0.82), "<", HOLDS),
        ((0.90, 0.80, 0.95), (0.80, 0.85, 0.80), ">", OPEN),
        ((0.90,), (0.80,), ">", OPEN),  # one seed
        ((0.90, 0.91), (), ">", MISSING),
    ],
)
def test_a_verdict_follows_from_the_interval(one, other, side, verdict):
    claim = Claim("name", "says", "", gain("victor-8-k1", "vtw-k1"), side, 0.01)
    assert claim.verdict(results(*of_seeds("victor-8-k1", *one), *of_seeds("vtw-k1", *other)))[0] == verdict


def test_seeds_are_compared_with_themselves():
    scattered = [0.5, 0.7, 0.9]
    better = [accuracy + 0.05 for accuracy in scattered]
    found = gain("victor-8-k1", "vtw-k1").estimate(
        results(*of_seeds("victor-8-k1", *better, 0.1), *of_seeds("vtw-k1", *scattered))
    )
    assert found.seeds == 3  # the fourth has no other
    assert (found.mean, found.half) == (pytest.approx(0.05), pytest.approx(0))


def test_effects_are_what_they_say():
    known = results(
        record("full", 0, 0.8, {"2": 0.9, "3": 0.7}),
        record("no-image", 0, 0.2),
        record("vtw-k1", 0, 0.5, {"2": 0.45, "3": 0.35}),
    )
    assert loss("vtw-k1").estimate(known).mean == pytest.approx(0.375)
    assert loss("vtw-k1", 2, 3).estimate(known).mean == pytest.approx(0.5)
    assert kept("vtw-k1").estimate(known).mean == pytest.approx(0.5)


def with_losses(point, losses, **more):
    found = record(point, 0, 0.8, **more)
    stages = {"pretrain": found["training"]["pretrain"], "finetune": found["training"]["finetune"] | {"loss": losses}}
    return found | {"training": stages}


def test_the_cost_of_a_loss_is_read_off_the_log():
    one = with_losses("llava", [2.0] * 5 + [1.0] * 5 + [0.1] + [1.0] * 4 + [0.5] * 5, per_step=2)
    assert cost_to_reach(2.0, one, "flops") == 20 + 5  # all of stage 1, the first five of twenty shares
    assert cost_to_reach(1.0, one, "flops") == 20 + 10  # as soon as a mean of five is there
    assert cost_to_reach(0.5, one, "flops") == 40  # and not at the lucky share


@pytest.mark.parametrize(
    ("timed", "device", "known_time"), [(True, "cpu", True), (False, "cpu", False), (True, "gpu", False)]
)
def test_training_saves_what_the_same_loss_costs_less(timed, device, known_time):
    point = "victor-8-k3-from-scratch"
    known = results(
        with_losses("llava", [2.0] * 5 + [0.5] * 5 + [0.4] * 5, per_step=4),
        with_losses(point, [2.0] * 5 + [1.0] * 5 + [0.5] * 5, per_step=2, timed=timed, device=device),
    )
    # llava reaches 0.5 after ten of fifteen shares: 4 * (10 + 10 * 10 / 15) against 2 * (10 + 10)
    assert saved(point, "llava", "flops").estimate(known).mean == pytest.approx(1 - 40 / (40 + 400 / 15))
    # without both times, or with those of two devices, nothing is said
    assert (saved(point, "llava", "seconds").estimate(known) is not None) == known_time


# --- results and the page -------------------------------------------------------------------------------------------

PAGE = """# Study

<!-- begin verdicts -->
what was here
<!-- end verdicts -->
kept
<!-- begin results -->
<!-- end results -->
"""


def test_the_page_has_a_verdict_for_every_claim(tmp_path):
    document = tmp_path / "study.md"
    document.write_text(PAGE)
    for point, less in [("full", 0), ("victor-8-k3", 0.01), ("no-image", 0.7)]:
        for seed, accuracy in enumerate([0.95, 0.96, 0.97]):
            write(record(point, seed, accuracy - less), tmp_path / "results")
    chosen = {"1": {"visor:self=0,cross=1": 1.0}, "2": {"visor:self=0,cross=1": 0.4, "visor:self=2,cross=2": 0.6}}
    write(record("visor-policy", 0, 0.9) | {"chosen": chosen}, tmp_path / "results")
    report(tmp_path / "results", document)
    text = document.read_text()
    assert "what was here" not in text
    assert "\nkept\n" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "--claims=" in line]
    by_command = {row[-1].strip("`"): row for row in rows}
    assert len(by_command) == len(CLAIMS)
    row = by_command["python -m benchmarks.study --claims=victor-8"]
    assert row[3].endswith("3 seeds")
    assert row[4] == "**holds**"
    assert by_command["python -m benchmarks.study --claims=none-k3"][3:5] == ["", "not measured"]
    assert "| victor-8-k3 | 3 |" in text
    for figure in ("accuracy", "layers", "choices", "loss"):
        assert f"(images/study-small-{figure}.png)" in text
        assert (tmp_path / "images" / f"study-small-{figure}.png").stat().st_size > 5_000


def test_another_size_is_named_in_the_command():
    assert "`python -m benchmarks.study --claims=victor-8 --sizes=144`" in verdicts("144", results())


def test_without_results_nothing_is_claimed(tmp_path):
    document = tmp_path / "study.md"
    document.write_text(PAGE)
    assert report(tmp_path, document).count("| not measured |") == len(CLAIMS)


def test_the_page_in_the_repository_says_what_its_results_say():
    text = DOCUMENT.read_text()
    assert page(text, measured(RESULTS)) == text


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(UserError, match="has no part <!-- begin verdicts -->"):
        filled("# Study\n", "verdicts", "")


def test_results_of_another_setting_do_not_count(tmp_path, monkeypatch):
    write(record("full", 0, 0.9), tmp_path)
    assert len(Results.read(tmp_path, "small").records) == 1
    changed = {"small": replace(SIZES["small"], depth=9)}
    monkeypatch.setattr(grid, "SIZES", changed)
    monkeypatch.setattr("benchmarks.study.records.SIZES", changed)
    assert not Results.read(tmp_path, "small").records


def test_a_damaged_result_is_named(tmp_path):
    write(record("full", 0, 0.9), tmp_path)
    file = tmp_path / "small" / "full-seed0.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match=r"full-seed0.json is no result of the study"):
        Results.read(tmp_path, "small")


# --- measuring ------------------------------------------------------------------------------------------------------


def test_what_has_a_result_is_not_measured_again(tmp_path, capsys):
    for seed in (0, 1):
        write(record("full", seed, 0.9), tmp_path)
    write(record("untrained-vtw-k1", 0, 0.9), tmp_path)
    given = study.parsed(["--claims=vtw-untrained-k1,none-k1", "--seeds=2", f"--results={tmp_path}"])
    assert study.missing(given, "small") == {
        ("victor-8-k1", 0): ["victor-8-k1"],
        ("llava", 0): [],  # the others start from it
        ("vtw-k1", 0): ["vtw-k1"],
        ("full", 0): ["no-image"],
        ("victor-8-k1", 1): ["victor-8-k1"],
        ("llava", 1): [],
        ("vtw-k1", 1): ["vtw-k1"],
        ("full", 1): ["no-image", "untrained-vtw-k1"],
    }
    llava = study.parsed(["--points=llava", "--seeds=1", f"--results={tmp_path}"])
    write(record("llava", 0, 0.9, timed=False), tmp_path)
    assert study.missing(llava, "small") == {("llava", 0): ["llava"]}  # for its time
    write(record("llava", 0, 0.9), tmp_path)
    assert not study.missing(llava, "small")
    assert study.main(["list", "--points=full", f"--results={tmp_path}"]) == 0
    assert "| full | full |  | 0, 1 |" in capsys.readouterr().out


def test_a_mistake_in_a_name_is_told_before_anything_runs(tmp_path, capsys):
    assert study.main(["--points=victor-9-k1", f"--out={tmp_path / 'study'}"]) == 2
    assert "no point is named 'victor-9-k1'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_what_fails_is_told_at_the_end_and_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    measured = []

    def fails(place, name, seed):
        raise UserError(f"{name} failed: the disk is full")

    def measure(place, name, seed, wanted):
        if name == "vtw-k3":
            fails(place, name, seed)
        measured.append(name)

    monkeypatch.setattr(Workplace, "prepare", lambda place, seeds, at_once: None)
    monkeypatch.setattr(Workplace, "time", fails)
    monkeypatch.setattr(Workplace, "measure", measure)
    monkeypatch.setattr(study, "begin", lambda platform: None)
    folders = [f"--out={tmp_path / 'study'}", f"--results={tmp_path / 'results'}"]
    assert study.main(["--points=vtw-k3,victor-8-k3,victor-8-k3-from-scratch", "--seeds=1", *folders]) == 2
    assert sorted(measured) == ["llava", "victor-8-k3", "victor-8-k3-from-scratch"]
    said = capsys.readouterr().err
    assert said.count("the disk is full") == 2
    assert "2 trainings failed (the time of victor-8-k3-from-scratch of seed 0, vtw-k3 of seed 0)" in said


def test_points_of_a_training_share_it_and_are_asked_in_their_own_way(tmp_path):
    place = Workplace("small", tmp_path, tmp_path / "results", None, batch_size=7)
    (place.data / "digits").mkdir(parents=True)
    (place.data / "digits" / "questions.jsonl").write_text("{}\n{}\n")
    jobs = [*place.training("victor-16-k3", 1), *place.asking("victor-16-cut-to-4", 1)]
    pretrain, finetune, cut, asked = (job.command for job in jobs)
    assert pretrain[1] == "--config=configs/quickstart.py:pretrain,victor:registers=16,layer=3"
    assert f"--config.init_from={tmp_path / 'llava-seed1' / 'finetune' / 'model'}" in pretrain
    assert f"--config.init_from={tmp_path / 'start-seed1'}" in place.training("llava", 1)[0].command
    assert f"--config.init_from={jobs[0].done}" in finetune
    assert "--config.seed=1" in finetune
    assert cut[2:] == (str(jobs[1].done), str(jobs[2].done), "--registers=4")
    assert f"--model={jobs[2].done}" in asked
    (blind,) = place.asking("no-image", 0)
    assert "--blind" in blind.command
    (untrained,) = place.asking("untrained-vtw-k2", 0)
    assert {"--compression=vtw:layer=2", f"--model={tmp_path / 'full-seed0' / 'finetune' / 'model'}"} <= {
        *untrained.command
    }


def test_a_training_is_timed_by_a_short_one_of_the_same_commands(tmp_path):
    place = Workplace("small", tmp_path, tmp_path / "results", None, batch_size=7)
    whole, short = (place.training("llava", 0, timed)[1].command for timed in (False, True))
    changed = set(whole) - set(short)
    assert {argument.partition("=")[0] for argument in changed} == {
        "--workdir",
        "--config.init_from",
        "--config.total_steps",
    }
    assert "--config.total_steps=150" in short


def test_a_longer_stage_has_more_steps_and_nothing_else_changes():
    recipe = {"pretrain": {"total_steps": 40, "batch_size": 8}, "finetune": {"total_steps": 1001}}
    assert lengthened(recipe, {"pretrain": 5, "finetune": 0.5}) == {
        "pretrain": {"total_steps": 200, "batch_size": 8},
        "finetune": {"total_steps": 500},
    }


def test_answers_are_counted_by_kind_and_by_steps(tmp_path):
    answers = [("place", True), ("place", False), ("where", True), ("below", True), ("right_of_below", False)]
    lines = [
        json.dumps({"category": kind, "answer": "7", "text": "7." if correct else "8"}) for kind, correct in answers
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n")
    found = accuracies(tmp_path / "answers.jsonl")
    assert found["all"] == 0.6
    assert found["steps"] == {"1": 0.66667, "2": 1.0, "3": 0.0}
    assert found["kinds"] == {"place": 0.5, "where": 1.0, "below": 1.0, "right_of_below": 0.0}


def test_a_stage_keeps_its_cost_and_a_short_curve_and_its_time_where_one_was_timed(tmp_path):
    def log(folder, seconds):
        steps = [{"loss": 4.0 - step / 100, "flops": 10, "step_time": seconds} for step in range(200)]
        steps[0]["step_time"] = 60.0  # compiled
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        return folder

    stage = log(tmp_path / "stage", 0.7)
    found = trained_stage(stage, tmp_path / "timed")
    assert (found["steps"], found["flops_per_step"], len(found["loss"])) == (200, 10, 50)
    assert found["loss"][0] == pytest.approx(4.0 - 0.015)
    assert "seconds_per_step" not in found
    timed = log(tmp_path / "timed", 0.5)
    assert trained_stage(stage, timed) == found, "a timing that failed says nothing"
    (timed / "model").mkdir()
    assert trained_stage(stage, timed) == found | {"seconds_per_step": 0.5}


def test_the_first_registers_are_cut_out_of_a_checkpoint(tmp_path):
    of = SIZES["small"]
    whole = fresh.checkpoint(model(replace(of, depth=1)), seed=0)
    registers = np.random.default_rng(0).normal(size=(16, 96)).astype(np.float32)
    spec = "victor:registers=16,layer=1"
    write_checkpoint(
        replace(whole, tensors=whole.tensors | {REGISTERS: from_array(registers)}, compression=spec),
        tmp_path / "whole",
        "hf",
    )
    cut(tmp_path / "whole", tmp_path / "fewer", 4)
    found = open_checkpoint(tmp_path / "fewer")
    assert found.compression == "victor:registers=4,layer=1"
    assert np.array_equal(found.tensors[REGISTERS].load(), registers[:4])
