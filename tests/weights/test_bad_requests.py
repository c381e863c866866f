"""A compression that cannot be, and inputs that no model can take, end in one sentence that says why."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

import tiny
from damage import refused
from safetensors.numpy import save_file

import victor_jax
from victor_jax.weights.read import open_checkpoint

# --- compressions ---------------------------------------------------------------------------------------------------


def mark_as_victor(folder, compression="victor:registers=4,layer=2", registers=(4, 64)):
    (folder / "victor.json").write_text(json.dumps({"compression": compression}))
    if registers is not None:
        save_file({"compression/registers": np.full(registers, 0.5, np.float32)}, folder / "victor.safetensors")


def test_registers_of_another_count(hf):
    mark_as_victor(hf)
    with refused(
        r"hf was trained with 4 registers .victor:registers=4,layer=2., victor:registers=8,layer=2 asks for 8"
    ):
        victor_jax.load(hf, compression="victor:registers=8,layer=2")


def test_a_method_whose_parameters_nobody_trained(hf):
    """The command trains them; a seed draws them, for those who time."""
    with refused(
        r"hf lacks 4 registers, which victor:registers=4,layer=2 learns: train first, `python train.py "
        r"--config=configs/finetune.py:victor:registers=4,layer=2 --config.init_from=.*hf --workdir=DIR "
        r".*or give load a seed"
    ):
        victor_jax.load(hf, "victor:registers=4,layer=2")
    assert victor_jax.load(hf, "victor:registers=4,layer=2", seed=0).registers.shape == (4, 64)


def test_lost_registers(hf):
    mark_as_victor(hf, registers=None)
    with refused(r"hf, trained with victor:registers=4,layer=2, lacks compression/registers"):
        open_checkpoint(hf)


@pytest.mark.parametrize("shape", [(4, 32), (256,), ()])
def test_wrongly_shaped_registers(shape, hf):
    mark_as_victor(hf, registers=shape)
    with refused(r"holds compression/registers as .* where \(4, 64\) is expected"):
        open_checkpoint(hf)


def test_a_side_file_that_names_no_compression(hf):
    (hf / "victor.json").write_text("{}")
    with refused(r"hf/victor.json names no compression"):
        open_checkpoint(hf)


def test_a_side_file_with_an_unknown_compression(hf):
    mark_as_victor(hf, compression="squeeze:layer=2", registers=None)
    with refused(r"unknown compression 'squeeze'"):
        open_checkpoint(hf)


@pytest.mark.parametrize(
    ("compression", "pattern"),
    [
        ("victr:registers=4,layer=2", r"unknown compression 'victr' .* did you mean 'victor'"),
        ("victor:registers=4,layr=2", r"unknown field 'layr=2' .* did you mean 'layer'"),
        ("victor:registers=4", r"needs layer"),
        ("victor:registers=0,layer=2", r"registers=0 .* must be a whole number from 1"),
        ("victor:registers=4,layer=two", r"layer=two .* whole number"),
        ("victor:registers=4,layer=5", r"layer=5.*4"),
        ("vtw:layer=99", r"layer=99.*4"),
        ("full:layer=1", r"unknown field 'layer=1'"),
    ],
)
def test_a_compression_that_cannot_be(compression, pattern, whole):
    with refused(pattern):
        victor_jax.load(whole, compression=compression)


def test_an_unknown_type(whole):
    with refused(r"unknown dtype 'int8': known are bfloat16"):
        victor_jax.load(whole, dtype="int8")


# --- what is asked of a model ---------------------------------------------------------------------------------------


def test_image_tokens_that_are_no_whole_number_of_images(vlm, net):
    ids = tiny.prompt(net.config, [3, 5])[:, :-6]
    with refused(r"row 0 of input_ids has 8 image tokens in a row, .* gives 9 per image"):
        vlm.logits(ids, tiny.pixels(net.config, 1))


@pytest.mark.parametrize("given", [0, 1, 3])
def test_pixels_for_another_number_of_images(given, vlm, net):
    pixels = tiny.pixels(net.config, given) if given else None
    with refused(rf"input_ids hold the tokens of 2 images, pixel_values has {given}"):
        vlm.logits(tiny.prompt(net.config, [3, 5, 2]), pixels)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 12, 12, 3), (1, 1, 12, 12), (1,)])
def test_pixels_of_another_size(shape, vlm, net):
    with refused(rf"pixel_values has shape \({shape[0]},.*, the vision tower wants \[images, 3, 12, 12\]"):
        vlm.logits(tiny.prompt(net.config, [3, 5]), np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(1, 16), (17,), (2, 17)])
def test_a_mask_of_another_shape(shape, vlm, net):
    ids = tiny.prompt(net.config, [3, 5])
    with refused(r"attention_mask has shape \(.*\), input_ids \(1, 17\)"):
        vlm.logits(ids, tiny.pixels(net.config, 1), np.ones(shape, np.int32))


def test_a_mask_that_leaves_nothing_of_a_row(vlm):
    with refused(r"attention_mask leaves nothing of row 1"):
        vlm.logits(np.ones((2, 5), np.int32), None, np.repeat([[1], [0]], 5, axis=1))


@pytest.mark.parametrize("ids", [np.ones(5, np.int32), np.ones((1, 5), np.float32), np.ones((1, 1, 5), np.int32)])
def test_ids_that_are_no_rows_of_whole_numbers(ids, vlm):
    with refused(r"input_ids must be whole numbers \[rows, length\]"):
        vlm.logits(ids)


def test_an_unknown_format(vlm, tmp_path):
    with refused(r"unknown format 'gguf': known are hf, llava, orbax"):
        vlm.save(tmp_path / "out", format="gguf")
