"""A checkpoint knows how it was taught to be asked, in every format."""

import json

import pytest
import talking
from small_run import CONFIG, small_run

import victor_jax
from victor_jax.errors import UserError
from victor_jax.prompt import Prompt
from victor_jax.training.outputs import export
from victor_jax.training.setup import start_tensors
from victor_jax.weights import fresh
from victor_jax.weights.read import open_checkpoint

SQUARE = Prompt("qwen2", "square")


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
@pytest.mark.parametrize("prompt", [Prompt(), SQUARE, Prompt(aspect="square")], ids=str)
@pytest.mark.parametrize("compression", ["full", "victor:registers=3,layer=2"])
def test_the_prompt_survives_a_round_trip(tmp_path, to, prompt, compression):
    folder = talking.saved(tmp_path / "m", compression, prompt, to, tokenizer=False)
    opened = open_checkpoint(folder)
    assert opened.prompt == prompt
    assert opened.compression == compression


def test_loading_and_saving_keeps_the_prompt(tmp_path):
    vlm = victor_jax.load(talking.saved(tmp_path / "m", prompt=SQUARE, tokenizer=False), dtype="float32")
    assert vlm.prompt == SQUARE
    vlm.save(tmp_path / "again", "hf")
    assert victor_jax.load(tmp_path / "again", dtype="float32").prompt == SQUARE


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_checkpoint_that_says_nothing_is_asked_as_llava(tmp_path, to):
    folder = talking.saved(tmp_path / "m", prompt=Prompt() if to == "hf" else SQUARE, to=to, tokenizer=False)
    assert not (folder / "victor.json").exists()
    written = json.loads((folder / "config.json").read_text())
    written.pop("prompt", None)
    (folder / "config.json").write_text(json.dumps(written))
    assert open_checkpoint(folder).prompt == Prompt("vicuna_v1", "pad")


@pytest.mark.parametrize("written", ["square", "pad", "anyres", None])
def test_the_original_layout_says_how_pictures_become_square(tmp_path, written):
    folder = talking.saved(tmp_path / "m", to="llava", tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": written}))
    assert open_checkpoint(folder).prompt.aspect == ("square" if written == "square" else "pad")


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ({"template": "vicuna"}, "prompt template 'vicuna': known are plain, vicuna_v1"),
        ({"aspect": "crop"}, "prompt aspect 'crop': known are square, pad"),
        ({"templat": "qwen2"}, "expected the keys template and aspect"),
        ("qwen2", "expected the keys template and aspect"),
    ],
)
def test_a_prompt_that_nobody_knows_is_refused(tmp_path, prompt, sentence):
    folder = talking.saved(tmp_path / "m", to="hf", tokenizer=False)
    (folder / "victor.json").write_text(json.dumps({"compression": "full", "prompt": prompt}))
    with pytest.raises(UserError, match=f"victor.json .*{sentence}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("template", "asked_with"), [("qwen2", "qwen2"), ("plain", "vicuna_v1")])
def test_a_trained_model_is_asked_as_it_was_taught(tmp_path, template, asked_with):
    run = small_run({"data.template": template, "data.aspect": "square"})
    start = fresh.checkpoint(CONFIG, seed=0)
    export(run, {}, start, start_tensors(run, start), tmp_path, tmp_path / "model")
    assert open_checkpoint(tmp_path / "model").prompt == Prompt(asked_with, "square")
