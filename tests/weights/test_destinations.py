"""A conversion writes all or nothing, and touches nothing that is there already."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

import layouts
import torch
from damage import SHARD, refused, rewrite, truncate
from layouts import change_config, drop, state

from victor_jax.cli.convert import convert
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.write import write_checkpoint

REPOSITORY = Path(__file__).parents[2]


# --- destinations ---------------------------------------------------------------------------------------------------


def nothing(_):
    """Progress that nobody watches."""


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
def test_a_destination_that_holds_something_stays_untouched(to, whole, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with refused(r"out exists and is not empty: choose another destination"):
        convert(whole, tmp_path / "out", to)
    assert left_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert left_in(tmp_path / "out") == ["thesis.txt"]


def test_a_destination_that_is_a_file_stays_untouched(whole, tmp_path):
    (tmp_path / "out").write_text("mine")
    with refused(r"out exists"):
        convert(whole, tmp_path / "out", "hf")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_destination_within_a_file(whole, tmp_path):
    (tmp_path / "file").write_text("mine")
    with refused(r"file/out cannot be written: .*Not a directory"):
        convert(whole, tmp_path / "file" / "out", "hf")


def test_a_link_to_an_empty_destination_is_followed(whole, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "room")
    convert(whole, tmp_path / "out", "llava")
    assert (tmp_path / "out").is_symlink()
    assert open_checkpoint(tmp_path / "room").format == "llava"


@pytest.fixture
def small_files():
    """No file may grow beyond 50 kB: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_disk_that_is_full(to, whole, tmp_path, small_files):
    with refused(r"out cannot be written: .*File too large"):
        convert(whole, tmp_path / "out", to)
    assert not left_in(tmp_path)


def test_an_empty_destination_is_filled(whole, tmp_path):
    (tmp_path / "out").mkdir()
    convert(whole, tmp_path / "out", "llava")
    assert left_in(tmp_path) == ["out"]
    assert open_checkpoint(tmp_path / "out").format == "llava"


def test_what_a_killed_conversion_left_is_replaced(whole, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale.bin").write_text("half")
    convert(whole, tmp_path / "out", "llava")
    assert left_in(tmp_path) == ["out"]
    assert "stale.bin" not in left_in(tmp_path / "out")


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "gone"])
def test_a_conversion_that_fails_half_way_leaves_nothing(damage, to, sharded, tmp_path):
    checkpoint = open_checkpoint(sharded)
    damage(sharded / SHARD)
    with refused(SHARD):
        write_checkpoint(checkpoint, tmp_path / "out", to, nothing)
    assert left_in(tmp_path) == ["hf"]


def test_an_interrupted_conversion_leaves_nothing(whole, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(open_checkpoint(whole), tmp_path / "out", "hf", interrupt)
    assert not left_in(tmp_path)


def test_a_model_that_a_layout_has_no_room_for_leaves_nothing(whole, hf, net, tmp_path):
    change_config(hf, lambda raw: raw.update(vision_feature_layer=[-2, -1]))
    wide = torch.ones(64, 256)
    rewrite(hf, net, lambda tensors: tensors | {"multi_modal_projector.linear_1.weight": wide})
    with refused(r"takes features of one vision layer"):
        convert(hf, tmp_path / "out", "llava")
    assert left_in(tmp_path) == ["hf"]


def test_a_linear_projector_has_no_place_in_transformers(net, tmp_path):
    tensors = drop(state(net, "original"), "mm_projector") | {"model.mm_projector.weight": torch.ones(64, 128)}
    layouts.original(tmp_path / "llava", net, tensors, mm_projector_type="linear")
    with refused(r"transformers' LLaVA has no linear projector: write --to=llava or --to=orbax"):
        convert(tmp_path / "llava", tmp_path / "out", "hf")
    assert left_in(tmp_path) == ["llava"]


# --- SIGTERM --------------------------------------------------------------------------------------------------------


def vast_checkpoint(folder):
    """Half a gigabyte of zeros that takes no room on the disk: a file with a hole. Slow enough to be caught at work."""
    net = layouts.model("llama_tied")
    config = net.config.to_dict()
    config["text_config"]["vocab_size"] = 2**21
    layouts.write_config(folder, config)
    header, offset = {}, 0
    for key, tensor in drop(state(net, "4.x on disk"), "lm_head").items():
        shape = [2**21, 64] if "embed_tokens" in key else list(tensor.shape)
        end = offset + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + offset)


@pytest.mark.parametrize("to", ["llava", "orbax"])
def test_a_terminated_conversion_leaves_nothing(to, tmp_path):
    vast_checkpoint(tmp_path / "hf")
    command = [sys.executable, "-m", "victor_jax", "convert", tmp_path / "hf", tmp_path / "out", f"--to={to}"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "out.partial").exists():
            assert process.poll() is None, "ended before it could be caught"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert left_in(tmp_path) == ["hf"]
