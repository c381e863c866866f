"""The layer search equals the withdrawn towers run one by one; the command goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import talking
from compression import field
from flax.traverse_util import unflatten_dict
from PIL import Image

from victor_jax import cli
from victor_jax.analysis.layer_search import cut_of, divergences
from victor_jax.cli import search_layer
from victor_jax.compression.spec import parse, with_cut
from victor_jax.errors import UserError
from victor_jax.inference import programs
from victor_jax.inference.vlm import VLM
from victor_jax.models.vlm import parameters
from victor_jax.prompt import Prompt
from victor_jax.weights.place import gather
from victor_jax.weights.tensors import from_array

DEPTH = 3


def vlm(spec, config):
    """Its layers in two loops."""
    module = field.model(spec, config)[0].clone(layers_per_loop=2)
    lazy = {name: from_array(array) for name, array in field.tensors(module.method, config).items()}
    params = {path: gather(path, lazy, module, np.dtype(np.float32)).load() for path in parameters(module)}
    return VLM(module, params, None, {}, Path(), Prompt())


def log_probabilities(spec, config):
    """float64 [B, W] after each row, from a pass of its own."""
    module, params = field.model(spec, config)
    batch, sizes = field.prepared(module, *field.unlike_rows(spec, config))
    logits, _ = programs.prefill(unflatten_dict(params, sep="/"), batch, module=module, sizes=sizes, room=1)
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("spec", "window", "checked"),
    [("vtw:layer=2", None, (1,)), ("victor:registers=2,layer=1,positions=renumber", 9, range(DEPTH))],
)
def test_one_walk_equals_a_pass_for_each_layer(spec, window, checked):
    config = replace(field.CONFIG, language=replace(field.CONFIG.language, depth=DEPTH, sliding_window=window))
    model, method = vlm(with_cut(spec, DEPTH), config), parse(spec, config)
    batch, sizes = field.prepared(replace(model.module, method=method), *field.unlike_rows(spec, config))
    found = divergences(model, method, range(DEPTH), batch, sizes)
    p = log_probabilities(with_cut(spec, DEPTH), config)
    for layer in checked:
        q = log_probabilities(with_cut(spec, layer), config)
        np.testing.assert_allclose(found[:, layer], (np.exp(q) * (q - p)).sum(axis=-1), atol=1e-5, rtol=0)
    assert found[:2].min() > 1e-3
    np.testing.assert_allclose(found[2], 0, atol=1e-6)  # text only


@pytest.mark.parametrize("spec", ["full", "fastv:keep=3,layer=1"])
def test_only_a_cut_that_takes_all_visual_tokens_can_be_searched(spec):
    with pytest.raises(UserError, match=f"{spec} cannot be searched"):
        cut_of(parse(spec, field.CONFIG))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A model of four layers with registers, and questions: the second is about no image."""
    folder = tmp_path_factory.mktemp("search")
    talking.saved(folder / "model", "victor:registers=2,layer=3")
    rows = []
    for number, words in enumerate(("<image>\nWhat is it?", "Is the light on?", "How many cats are there?\n<image>")):
        rows.append({"conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": "Yes."}]})
        if "<image>" in words:
            rows[-1]["image"] = f"{number}.png"
            talking.picture(number).save(folder / f"{number}.png")
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "words.json").write_text(json.dumps(rows[1:2]))
    (folder / "broken.json").write_text(json.dumps([rows[0] | {"image": "questions.json"}]))
    return folder


def asked(data, *flags, questions="questions.json"):
    """Later flags win."""
    fixed = [f"--model={data / 'model'}", f"--questions={data / questions}", f"--images={data}", "--dtype=float32"]
    return ["search-layer", *fixed, "--first=1", *map(str, flags)]


def test_it_goes_on_where_it_was_killed(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(asked(data, f"--out={whole}", "--threshold=1000")) == 0
    said = capsys.readouterr().out
    assert "questions: 2\n" in said
    assert "--compression=victor:registers=2,layer=1\n" in said
    calls = []

    def once(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return divergences(*arguments)

    monkeypatch.setattr(search_layer, "divergences", once)
    assert cli.main(asked(data, f"--out={stopped}")) == 130
    lines = stopped / search_layer.LINES
    with lines.open("a") as file:
        file.write('{"row": 2, "ques')  # a kill in the middle of a line
    calls.clear()
    cli.main(asked(data, f"--out={stopped}"))
    assert lines.read_bytes() == (whole / search_layer.LINES).read_bytes()

    table = np.array([json.loads(line)["divergences"] for line in lines.read_text().splitlines()])
    mean = table.mean(axis=0)
    second = np.sort(mean)[1]
    first_within = 1 + int(np.flatnonzero(mean <= second)[0])
    monkeypatch.setattr(search_layer, "load", None)  # all is there: no weight is read
    capsys.readouterr()
    assert cli.main(asked(data, f"--out={stopped}", f"--threshold={second}")) == 0
    assert f"--compression=victor:registers=2,layer={first_within}\n" in capsys.readouterr().out
    assert np.asarray(Image.open(stopped / search_layer.CURVE).convert("L")).std() > 10
    assert cli.main(asked(data, f"--out={stopped}", "--threshold=0")) == 1
    assert "no layer is within 0" in capsys.readouterr().out

    assert cli.main(asked(data, f"--out={stopped}", "--first=2")) == 2
    said = capsys.readouterr().err
    assert "holds divergences under other settings: compression was 'victor:registers=2,layer=1' and is" in said
    lines.write_text(lines.read_text().replace("What is it?", "What was it?"))
    assert cli.main(asked(data, f"--out={stopped}")) == 2
    assert "divergences.jsonl, line 1, is not this search's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--threshold=-1"], "--threshold=-1.0 must be a number from 0"),
        (["--threshold=nan"], "--threshold=nan must be a number from 0"),
        (["--limit=0"], "--limit=0 must be a whole number from 1"),
        (["--first=4"], "--first=4 and --last=3 must be layers"),
        (["--compression=fastv:keep=3"], "fastv:keep=3,layer=1 cannot be searched"),
        (["--images="], "the images that"),
    ],
)
def test_a_mistake_is_one_line(data, flags, sentence, capsys):
    assert cli.main(asked(data, *flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("questions", "sentence"),
    [("words.json", "asks about no image"), ("broken.json", "row 0"), ("nowhere.json", "does not exist")],
)
def test_questions_that_cannot_be_asked_are_one_line(data, questions, sentence, capsys):
    assert cli.main(asked(data, questions=questions)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {data / questions}")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_call_that_fails_leaves_no_settings_behind(data, tmp_path, capsys):
    assert cli.main(asked(data, f"--out={tmp_path / 'out'}", "--dtype=float3")) == 2
    assert "unknown dtype 'float3'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_of_something_else_is_refused(data, tmp_path, capsys):
    (tmp_path / "settings.json").write_text("[]")
    assert cli.main(asked(data, f"--out={tmp_path}")) == 2
    assert "settings.json was not written by this command: give another --out" in capsys.readouterr().err
