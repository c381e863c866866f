"""victor-jax train-policy: what every plan makes of known answers, kept; and what chooses, taught by it."""

import json

import numpy as np
import pytest
import talking

from victor_jax import cli
from victor_jax.analysis import policy
from victor_jax.cli import train_policy
from victor_jax.inference.vlm import load

ROWS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A model that was trained with sub-networks, and questions of two lengths: one is about no image."""
    folder = tmp_path_factory.mktemp("policy")
    talking.saved(folder / "model", "visor:sampled")
    talking.saved(folder / "plain")
    rows = []
    for number in range(ROWS):
        words = "What is it?" if number % 2 else "Is there anything to be seen here?"
        turns = [{"from": "human", "value": f"<image>\n{words}"}, {"from": "gpt", "value": "Yes."}]
        rows.append({"image": f"{number}.png", "conversations": turns})
        talking.picture(number).save(folder / f"{number}.png")
    rows.insert(1, {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello"}]})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "words.json").write_text(json.dumps(rows[1:2]))
    return folder


def asked(data, out, *flags, model="model"):
    """Later flags win."""
    fixed = [f"--model={data / model}", f"--data={data / 'rows.json'}", f"--images={data}", f"--out={out}"]
    more = ["--compression=visor:policy", "--dtype=float32", "--batch-size=4", "--steps=3", "--held-out=0.4"]
    return ["train-policy", *fixed, *more, *map(str, flags)]


def test_it_goes_on_where_it_was_killed(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(asked(data, whole)) == 0
    said = capsys.readouterr().out
    assert "visor:self=0,cross=1" in said
    assert "visor:self=1,cross=1" in said
    assert "4 rows: what is chosen does as well as visor:self=1,cross=1 for" in said
    first, calls = policy.try_plans, []

    def once(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return first(*arguments)

    monkeypatch.setattr(policy, "try_plans", once)
    assert cli.main(asked(data, stopped)) == 130
    with (stopped / train_policy.LINES).open("a") as file:
        file.write('{"row": 2, "log')  # a kill in the middle of a line
    with (stopped / train_policy.FEATURES).open("ab") as file:
        file.write(b"12345")
    calls.clear()
    monkeypatch.setattr(policy, "try_plans", first)
    assert cli.main(asked(data, stopped)) == 0
    for name in (train_policy.LINES, train_policy.FEATURES):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    models = [load(folder / train_policy.MODEL, dtype="float32") for folder in (whole, stopped)]
    assert {vlm.compression for vlm in models} == {"visor:policy"}
    for path, leaf in models[0].params.items():
        np.testing.assert_array_equal(leaf, models[1].params[path])
    capsys.readouterr()

    assert cli.main(asked(data, whole)) == 2
    assert "is there already" in capsys.readouterr().err
    (whole / train_policy.MODEL).rename(tmp_path / "moved")
    assert cli.main(asked(data, whole, "--limit=5")) == 2
    assert "holds labels under other settings: limit was 6000 and is 5" in capsys.readouterr().err
    assert cli.main(asked(data, whole, f"--model={tmp_path / 'moved'}")) == 2
    assert "holds labels under other settings: model_files was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--steps=0"], "--steps=0 must be a whole number from 1"),
        (["--held-out=1"], "--held-out=1.0 must be a share"),
        (["--compression=full"], "full chooses nothing"),
        (["--compression=visor:self=3,policy"], "self=3 does not divide"),
        (["--images="], "the images that"),
        (["--data=nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_a_mistake_is_one_line(data, tmp_path, flags, sentence, capsys):
    assert cli.main(asked(data, tmp_path / "out", *flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rows_without_images_are_no_help(data, tmp_path, capsys):
    assert cli.main(asked(data, tmp_path / "out", f"--data={data / 'words.json'}")) == 2
    assert "has 0 rows with an image" in capsys.readouterr().err


def test_a_model_without_what_chooses_names_the_command(data):
    with pytest.raises(Exception, match=r"nothing that chooses a plan for each row.*victor-jax train-policy --model="):
        load(data / "model", "visor:policy")
    with pytest.raises(Exception, match="nothing that chooses"):
        load(data / "plain", "dyvte")
    assert load(data / "model", "visor:self=0,cross=1").compression == "visor:self=0,cross=1"
