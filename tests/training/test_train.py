"""train.py from end to end, on the eight virtual devices of this process."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import small_run
from PIL import Image
from small_run import conversation, image_row, losses, metrics, overrides, run_here
from soak import saved

import victor_jax
from victor_jax import cli
from victor_jax.compression.spec import parse
from victor_jax.data.images import preprocess
from victor_jax.errors import UserError
from victor_jax.evaluation import live
from victor_jax.evaluation.answers import Answer
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.images import normalise
from victor_jax.ops.losses import IGNORE
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training import outputs, settings, setup
from victor_jax.training.lock import owned
from victor_jax.training.outputs import export
from victor_jax.training.setup import open_start
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.read import open_checkpoint


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    small_run.share_compile_cache(tmp_path_factory.mktemp("compiled"))
    yield
    small_run.forget_compile_cache()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_run.write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start, data):
    """Ten steps at once, with checkpoints of steps 5 and 10."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_here(workdir, overrides(start, data))
    return workdir


def interrupted(run: Path, folder: Path, step: int = 5) -> Path:
    """The work folder of `run` as a kill after the checkpoint of `step` would have left it."""
    workdir = shutil.copytree(run, folder / "interrupted")
    for checkpoint in (workdir / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(workdir / "model")
    return workdir


@pytest.mark.parametrize("mesh", [(4, 2, 1), (1, 2, 4)])
def test_every_mesh_trains_alike(tmp_path, undisturbed, start, data, mesh):
    layout = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    run_here(tmp_path / "run", overrides(start, data, checkpoint__every=1000, **layout))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(undisturbed), rtol=1e-5)


def test_one_device_trains_like_eight(tmp_path, undisturbed, start, data, monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    run_here(tmp_path / "run", overrides(start, data, mesh__fsdp=1, checkpoint__every=1000))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(undisturbed), rtol=1e-5)


def test_a_resumed_run_keeps_its_parts_on_other_devices(tmp_path, start, data, monkeypatch):
    """Devices that ask for two parts, and then for one: the batches stay those of two."""
    changes = {"batch_size": 16, "total_steps": 4, "checkpoint__every": 2}
    monkeypatch.setattr(setup, "PART_ROWS", 1)
    run_here(tmp_path / "run", overrides(start, data, **changes))
    workdir = interrupted(tmp_path / "run", tmp_path, step=2)
    monkeypatch.setattr(setup, "PART_ROWS", 2)
    run_here(workdir, overrides(start, data, **changes))
    assert json.loads((workdir / "config.json").read_text())["micro_batches"] == 2
    small_run.assert_identical(saved(workdir, 4), saved(tmp_path / "run", 4))


def test_an_interrupted_run_ends_bit_identical_also_where_benchmarks_are_run(tmp_path, undisturbed, start, data):
    """And their score is that of the exported model."""
    workdir = interrupted(undisturbed, tmp_path)
    asked = [
        {"question_id": number, "image": f"{number}.png", "text": text, "category": "", "answer": "x"}
        for number, text in enumerate(("What colour is it?", "What shape?", "What colour is the shape?"))
    ]
    shutil.copytree(data, tmp_path / "digits" / "images")
    (tmp_path / "digits" / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    said = []
    evaluation = {"every": 4, "benchmarks": ("digits",), "data": str(tmp_path), "questions": 2}
    changes = {f"evaluation__{name}": value for name, value in evaluation.items()}
    with mock.patch.object(live, "Answer", side_effect=lambda *one: said.append(one[1]) or Answer(*one)):
        run_here(workdir, overrides(start, data, **changes))
    small_run.assert_identical(saved(workdir, 10), saved(undisturbed, 10))
    assert losses(workdir) == losses(undisturbed)
    assert len(losses(workdir)) == 10
    assert [line["step"] for line in metrics(workdir) if "eval/digits" in line] == [7, 9]

    model = victor_jax.load(workdir / "model", dtype="float32")
    images = [data / f"{number}.png" for number in (0, 1)]
    assert said[2:] == model.generate([row["text"] for row in asked[:2]], images, max_new_tokens=8)


def test_a_finished_run_changes_nothing_and_says_where_the_model_is(undisturbed, start, data, capsys):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    run_here(undisturbed, overrides(start, data))
    assert f"the model is in {undisturbed / 'model'}" in capsys.readouterr().out
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_a_finished_model_without_checkpoints_is_not_trained_over(tmp_path, undisturbed, start, data):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="holds a finished model, and no checkpoint"):
        run_here(workdir, overrides(start, data))


@pytest.fixture
def bytes_read(monkeypatch):
    """Bytes of each tensor of the start that a run reads: before its export, and for it."""
    counts = before, for_export = Counter(), Counter()
    current = [before]

    def counted(name, tensor):
        def read(index):
            array = tensor.read(index)
            current[-1][name] += array.nbytes
            return array

        return replace(tensor, read=read)

    def open_counted(given):
        start = open_start(given)
        return replace(start, tensors={name: counted(name, tensor) for name, tensor in start.tensors.items()})

    def export_counted(*arguments):
        current.append(for_export)
        export(*arguments)

    monkeypatch.setattr(setup, "open_start", open_counted)
    monkeypatch.setattr(outputs, "export", export_counted)
    return counts


@pytest.mark.parametrize("step", [0, 5, 10])
def test_each_tensor_of_the_start_is_read_once_and_what_is_trained_not_after_a_restart(
    tmp_path, undisturbed, start, data, bytes_read, step
):
    """From step 0; after a kill with the checkpoint of step 5; after one between the last step and the export."""
    workdir = interrupted(undisturbed, tmp_path, step) if step else tmp_path / "run"
    run_here(workdir, overrides(start, data))
    sizes = {name: tensor.nbytes for name, tensor in open_checkpoint(start).tensors.items()}
    frozen = {name: size for name, size in sizes.items() if name.startswith("vision/")}
    unused = {name for name in frozen if name.startswith(("vision/layers/2/", "vision/post_norm/"))}
    used = {name: size for name, size in (frozen if step else sizes).items() if name not in unused}
    assert bytes_read[0] == ({} if step == 10 else used)
    assert bytes_read[1] == frozen, "the export takes what was not trained bit by bit from the start"


def test_another_mesh_goes_on_with_the_same_data(tmp_path, undisturbed, start, data):
    workdir = interrupted(undisturbed, tmp_path)
    run_here(workdir, overrides(start, data, mesh__fsdp=2, mesh__tensor=4, checkpoint__every=7))
    np.testing.assert_allclose(losses(workdir), losses(undisturbed), rtol=1e-5)
    assert losses(workdir)[:5] == losses(undisturbed)[:5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__learning_rate": 0.5}, r"config.optimizer.learning_rate=0.001, now it is 0.5"),
        ({"compression": "full"}, r"config.compression='victor:registers=2,layer=1', now it is 'full'"),
        ({"seed": 3}, r"config.seed=42, now it is 3"),
    ],
)
def test_a_resumed_run_refuses_another_config(tmp_path, undisturbed, start, data, change, message):
    with pytest.raises(UserError, match=message):
        run_here(interrupted(undisturbed, tmp_path), overrides(start, data, **change))


def test_a_resumed_run_refuses_other_data(tmp_path, start, data, undisturbed):
    other = shutil.copytree(data, tmp_path / "data")
    workdir = interrupted(undisturbed, tmp_path)
    shutil.copy(workdir / "config.json", tmp_path / "kept.json")
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"path": str(other / "data.json"), "images": str(other)}
    (workdir / "config.json").write_text(json.dumps(config))
    rows = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps([*rows, image_row(0)]))
    with pytest.raises(UserError, match=r"the data of the run in .* has changed since its checkpoint"):
        run_here(workdir, overrides(start, other))


def test_a_second_start_in_one_folder_is_refused(tmp_path, start, data):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with owned(workdir), pytest.raises(UserError, match="belongs to a run that is at work"):
        run_here(workdir, overrides(start, data))
    assert [file.name for file in workdir.iterdir()] == ["lock"]


def test_a_failed_start_does_not_block_the_corrected_one(tmp_path, start, data):
    right = overrides(start, data, total_steps=1)
    with pytest.raises(UserError, match="does not exist"):
        run_here(tmp_path / "run", right | {"optimizer.learning_rate": 0.5, "data.images": str(data / "elsewhere")})
    run_here(tmp_path / "run", right)
    assert len(losses(tmp_path / "run")) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3


def test_a_nan_stops_the_run_and_nothing_broken_is_saved(tmp_path, start, data):
    broken = shutil.copytree(start, tmp_path / "broken")
    checkpoint = open_checkpoint(start)
    kernel = checkpoint.tensors["language/layers/2/mlp/down/kernel"].load()
    kernel[0, 0] = np.nan
    small_run.rewrite(checkpoint, broken, {"language/layers/2/mlp/down/kernel": kernel})
    changes = overrides(broken, data, checkpoint__every=1)
    with pytest.raises(UserError, match=r"step 0 is bad \(loss nan.*its rows of highest loss are \d+ \(nan\), \d+ "):
        run_here(tmp_path / "run", changes)
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert not (tmp_path / "run" / "model").exists()
    assert metrics(tmp_path / "run")[0]["loss"] is None


def test_skipped_steps_change_nothing_are_counted_and_stop_at_last(tmp_path, start, data, capsys):
    changes = {"action": "skip", "spike_factor": 1e-3, "most": 2}  # every step after the first is a spike
    changes = {f"bad_step__{key}": value for key, value in changes.items()}
    with pytest.raises(UserError, match="step 3 is bad"):
        run_here(
            tmp_path / "run",
            overrides(start, data, checkpoint__every=1, checkpoint__keep_last=0, **changes),
        )
    small_run.assert_identical(saved(tmp_path / "run", 3), saved(tmp_path / "run", 1))
    assert [line["bad"] for line in metrics(tmp_path / "run")] == [False, True, True, True]
    rows = {str(row) for row in range(40)}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: step ")]
    assert [line.split()[2] for line in said] == ["1", "2"]
    assert set(said[0].split("highest loss are ")[1].split()[::2]) <= rows


def test_held_out_loss_comes_at_its_steps_and_is_the_exported_models(tmp_path, start, data):
    changes = overrides(
        start, data, total_steps=6, evaluation__every=2, evaluation__rows=5, log_every=4, checkpoint__every=1000
    )
    run_here(tmp_path / "run", changes)
    logged = metrics(tmp_path / "run")
    assert [line["step"] for line in logged] == [0, 1, 3, 4, 5], "each fourth, and those with an evaluation"
    assert [line["step"] for line in logged if "held_out_loss" in line] == [1, 3, 5]

    parsed = settings.read(small_run.config_of(changes))
    checkpoint = open_start(parsed)
    method = parse(parsed.compression, checkpoint.config)
    inputs = small_run.open_inputs(parsed, checkpoint, method, make_mesh(fsdp=8), tmp_path / "run")
    held = rows_of(inputs.held_out.schedule)
    assert len(held) == 5
    assert not held & rows_of(inputs.train.schedule)
    assert len(held | rows_of(inputs.train.schedule)) == 40

    model = victor_jax.load(tmp_path / "run" / "model", dtype="float32")
    total, count = np.sum([loss_of_row(model, inputs.held_out, row) for row in held], axis=0)
    np.testing.assert_allclose(logged[-1]["held_out_loss"], total / count, rtol=1e-4)


def rows_of(schedule):
    steps = (schedule.at(step)[1] for step in range(schedule.steps_per_epoch))
    return {int(row) for rows in steps for row in rows.reshape(-1) if row >= 0}


def loss_of_row(model, source, row):
    """Summed loss and supervised tokens, by the public interface."""
    example = source.reader[row]
    text = [[token] if token != IMAGE else [model.config.image_token] * 4 for token in example.ids]
    image = preprocess(source.reader.records.open(example.images[0]), small_run.IMAGE_SIZE, "pad")
    pixels = np.asarray(normalise(image))[None]
    logits = model.logits(np.concatenate(text)[None], pixels)[0]
    wanted = example.targets[example.ids != IMAGE]
    learnt = np.flatnonzero(wanted[1:] != IGNORE) + 1
    chosen = logits[learnt - 1]
    likelihoods = np.log(np.exp(chosen - chosen.max(-1, keepdims=True)).sum(-1)) + chosen.max(-1)
    return (likelihoods - chosen[np.arange(len(learnt)), wanted[learnt]]).sum(), len(learnt)


def test_a_transfer_in_the_loop_that_nobody_asked_for_is_an_error(tmp_path, start, data, monkeypatch):
    monkeypatch.setattr(setup, "number_on_mesh", lambda number, mesh: number)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run_here(tmp_path / "run", overrides(start, data))


def test_the_chosen_steps_are_traced_also_where_a_resumed_run_begins_among_them(tmp_path, undisturbed, start, data):
    assert not (undisturbed / "profile").exists()
    workdir = interrupted(undisturbed, tmp_path)
    run_here(workdir, overrides(start, data, profile__first=4, profile__steps=3))
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    events = [
        dict(event.stats)
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(int(stats["step_num"]) for stats in events) == [5, 6]


def test_every_parameter_is_listed_with_its_shape_and_place(undisturbed, start, data, capsys):
    rows = [line.split() for line in (undisturbed / "parameters.txt").read_text().splitlines()]
    rows = {row[0]: " ".join(row[1:]) for row in rows}
    assert rows["compression/registers"] == "[2, 64] float32 P(None, None) trained"
    assert rows["language/stages_1_0/mlp/up/kernel"] == "[2, 64, 96] float32 P(None, 'fsdp', 'tensor') trained"
    assert rows["vision/position_embedding"].endswith("frozen")
    assert len(rows) == len(saved_params(undisturbed)) + sum(row.endswith("frozen") for row in rows.values())
    run_here(undisturbed, overrides(start, data))
    assert "parameters: compression 128 trained, language 1" in capsys.readouterr().out


def saved_params(workdir):
    return [path for path in saved(workdir, 10) if path.startswith("params/")]


def test_the_first_batch_is_there_to_be_looked_at(undisturbed):
    text = (undisturbed / "first_batch" / "text.txt").read_text()
    assert "USER: <4 visual><2 register>\nWhat colour is the shape? ASSISTANT:[[ " in text
    assert text.count("</s>]]") == 8
    with Image.open(undisturbed / "first_batch" / "0-0.png") as image:
        assert image.size == (28, 28)


def test_the_model_comes_up_under_its_compression_with_its_registers(undisturbed):
    model = victor_jax.load(undisturbed / "model", dtype="float32")  # a warning would be an error here
    assert model.compression == "victor:registers=2,layer=1"
    np.testing.assert_array_equal(model.registers, saved(undisturbed, 10)[f"params/{REGISTERS}"])


def test_a_model_with_registers_can_go_on_without_them(tmp_path, undisturbed, data):
    changes = overrides(undisturbed / "model", data, total_steps=1)
    run_here(tmp_path / "run", changes, argument="vtw,layer=1,runlocal")
    assert victor_jax.load(tmp_path / "run" / "model").compression == "vtw:layer=1"


def broken_rows():
    """Fifty rows in LLaVA's own format; nine of them cannot be learnt from, six by their text, three by their image."""
    rows = [image_row(number) for number in range(50)]
    for number in (3, 13, 23):
        rows[number] = {"conversations": conversation("Is the light on?", "yes")}
    rows[5]["conversations"] = conversation("<image>\nWhat colour is the shape?", " ")
    rows[11]["conversations"] = conversation("<image>\nWhat colour is the shape?", "What?", "red")[::2]
    rows[17] = {"id": "17"}
    rows[29]["conversations"] = conversation("<image>\n<image>\nTwo?")
    rows[31]["conversations"][1]["from"] = "robot"
    rows[37]["conversations"] = "What colour?"
    return rows


def test_both_stages_export_to_hugging_face(tmp_path, start):
    folder = small_run.write_data(tmp_path / "data", broken_rows())
    (folder / "41.png").unlink()
    (folder / "43.png").write_bytes(b"no image")
    (folder / "47.png").write_bytes((folder / "47.png").read_bytes()[:200])
    bad = [5, 11, 17, 29, 31, 37, 41, 43, 47]
    first, second = tmp_path / "first", tmp_path / "second"
    run_here(first, overrides(start, folder, total_steps=2), recipe="pretrain")
    run_here(second, overrides(first / "model", folder, checkpoint__every=1000))

    listed = [json.loads(line) for line in (second / "bad_rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == bad
    assert "41.png: there is no such file" in listed[6]["reason"]
    given, projected, trained = (open_checkpoint(path) for path in (start, first / "model", second / "model"))
    for name, tensor in given.tensors.items():
        after_one, after_two = projected.tensors[name].load(), trained.tensors[name].load()
        part = name.split("/")[0]
        assert np.array_equal(tensor.load(), after_one) == (part != "projector"), name
        if part == "vision":
            np.testing.assert_array_equal(tensor.load(), after_two, err_msg=name)
        elif name.endswith("kernel"):
            assert not np.array_equal(after_one, after_two), name

    transformers = pytest.importorskip("transformers.models.llava.modeling_llava", reason="needs torch")
    assert cli.main(["convert", str(second / "model"), str(tmp_path / "hf"), "--to=hf"]) == 0
    _, found = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(found.values()), found


def test_bad_images_found_before_an_interruption_are_listed_after_it(tmp_path, start):
    folder = small_run.write_data(tmp_path / "data")
    for number in range(1, 40, 5):
        (folder / f"{number}.png").unlink()
    changes = overrides(start, folder, total_steps=5, checkpoint__every=3)  # one epoch
    run_here(tmp_path / "run", changes)
    rows = (tmp_path / "run" / "bad_rows.jsonl").read_text()
    assert rows.count("there is no such file") == 8
    workdir = interrupted(tmp_path / "run", tmp_path, step=3)
    (workdir / "bad_rows.jsonl").unlink()
    run_here(workdir, changes)
    assert (workdir / "bad_rows.jsonl").read_text() == rows
