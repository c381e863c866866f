"""What a run finds in its folder: damaged files and other people's are one sentence each; nothing is overwritten."""

import json

import pytest

from victor_jax.errors import UserError
from victor_jax.training import outputs
from victor_jax.training.metrics import Metrics

CONFIG = {"seed": 1, "micro_batches": 2, "log_every": 1}


def folder_with_a_step(tmp_path, written):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_text(written)
    return tmp_path


@pytest.mark.parametrize("written", ['{"seed": 1, "micro', "[]", "\x00\x01"])
def test_a_damaged_config_names_the_file(tmp_path, written):
    workdir = folder_with_a_step(tmp_path, written)
    for read in (lambda: outputs.keep_config(workdir, CONFIG), lambda: outputs.parts_before(workdir)):
        with pytest.raises(UserError, match=r"config\.json (is not JSON|holds a list)"):
            read()
    assert (tmp_path / "config.json").read_text() == written


def test_a_refused_start_leaves_the_config_as_it_was(tmp_path):
    workdir = folder_with_a_step(tmp_path, json.dumps(CONFIG))
    with pytest.raises(UserError, match=r"holds a run with config\.seed=1, now it is 2"):
        outputs.keep_config(workdir, CONFIG | {"seed": 2, "log_every": 9})
    assert json.loads((workdir / "config.json").read_text()) == CONFIG


def test_a_run_from_before_a_key_goes_on_with_what_it_computed(tmp_path):
    workdir = folder_with_a_step(tmp_path, json.dumps(CONFIG))
    outputs.keep_config(workdir, CONFIG | {"optimizer": {"cosine": True}})
    with pytest.raises(UserError, match=r"holds a run with config\.optimizer\.cosine=True, now it is False"):
        outputs.keep_config(workdir, CONFIG | {"optimizer": {"cosine": False}})


def test_a_run_that_goes_on_keeps_its_number_of_parts(tmp_path):
    assert outputs.parts_before(tmp_path) == 0
    assert outputs.parts_before(folder_with_a_step(tmp_path, json.dumps(CONFIG))) == 2


def test_a_model_is_there_when_it_is_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "note.txt").write_text("mine")
    assert not outputs.has_model(tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert outputs.has_model(tmp_path)


def test_a_file_in_place_of_the_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"checkpoints is not a folder"):
        outputs.make_workdir(tmp_path)


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\n", b"[1]\n", b'{"loss": 1}\n', b"\n"])
def test_damaged_metrics_are_kept_and_named(tmp_path, damage):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 0}\n' + damage)
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: move it away"):
        Metrics(tmp_path, 10, is_first_host=True, resume_step=5)
    assert file.read_bytes() == b'{"step": 0}\n' + damage
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
