"""A mistake ends in one sentence that names the file, the tensor or the field, and leaves nothing half-written."""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

import layouts
import tiny
import torch
from layouts import change_config, drop, pick, state
from safetensors.numpy import save_file

import victor_jax
from victor_jax.cli.convert import convert
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.write import write_checkpoint

REPOSITORY = Path(__file__).parents[2]
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def refused(*patterns):
    """Exactly one error, in one line, in which each of the patterns is found."""
    with pytest.raises(victor_jax.UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        caught.match(pattern)


@pytest.fixture(scope="module")
def net():
    return layouts.model()


@pytest.fixture(scope="module")
def whole(net, tmp_path_factory):
    return layouts.hf(tmp_path_factory.mktemp("whole"), net)


@pytest.fixture
def hf(whole, tmp_path):
    """A folder to damage."""
    return Path(shutil.copytree(whole, tmp_path / "hf"))


@pytest.fixture
def sharded(net, tmp_path):
    layouts.write_config(tmp_path / "hf", net.config.to_dict())
    layouts.write_safetensors(tmp_path / "hf", state(net, "4.x on disk"), shards=3)
    return tmp_path / "hf"


@pytest.fixture(scope="module")
def clip(net, tmp_path_factory):
    return layouts.clip(tmp_path_factory.mktemp("clip"), net)


@pytest.fixture(scope="module")
def language_model(net, tmp_path_factory):
    return layouts.language_model(tmp_path_factory.mktemp("language"), net)


@pytest.fixture(scope="module")
def vlm(whole):
    return victor_jax.load(whole, dtype="float32")


def truncate(file, by=100):
    os.truncate(file, file.stat().st_size - by)


def rewrite(folder, net, change):
    """The folder's weights again, with `change` made to them."""
    tensors = state(net, "4.x on disk")
    layouts.write_safetensors(folder, change(tensors) or tensors)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist(tmp_path):
    with refused(r"nowhere/config.json does not exist"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "why"),
    [("{not json", "is not JSON"), ("[1]", "holds a list, expected a JSON object"), (b"\xff\xfe\x00", "is not JSON")],
)
def test_a_config_that_is_not_a_json_object(text, why, hf):
    (hf / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(f"hf/config.json {why}"):
        open_checkpoint(hf)


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(hf):
    with refused("config.json/config.json does not exist"):
        open_checkpoint(hf / "config.json")
    (hf / "config.json").unlink()
    (hf / "config.json").mkdir()
    with refused("config.json cannot be read: Is a directory"):
        open_checkpoint(hf)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(name, hf):
    if name == "pytorch_model.bin":
        (hf / "model.safetensors").unlink()
    (hf / name).unlink(missing_ok=True)
    os.mkfifo(hf / name)
    with refused(f"{name} is a pipe or a device"):
        open_checkpoint(hf)


def test_a_folder_without_weights(hf):
    (hf / "model.safetensors").unlink()
    with refused(r"hf holds no weights: expected model.safetensors or pytorch_model.bin"):
        open_checkpoint(hf)


@pytest.mark.parametrize("kept", [0, 4, 50, 100_000])
def test_a_truncated_safetensors_file(kept, hf):
    os.truncate(hf / "model.safetensors", kept)
    with refused(r"hf/model.safetensors is truncated or not a safetensors file"):
        open_checkpoint(hf)


def test_a_pointer_of_git_lfs_in_place_of_the_weights(hf):
    (hf / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with refused(r"hf/model.safetensors is truncated or not a safetensors file"):
        open_checkpoint(hf)


def test_a_truncated_pickled_file(net, tmp_path):
    folder = layouts.original(tmp_path, net)
    truncate(folder / "pytorch_model.bin")
    with refused(r"pytorch_model.bin' is truncated or damaged"):
        open_checkpoint(folder)


def test_a_missing_shard(sharded):
    (sharded / SHARD).unlink()
    with refused(rf"{INDEX} names shards that are not in its folder: {SHARD}"):
        open_checkpoint(sharded)


def test_a_truncated_shard(sharded):
    truncate(sharded / SHARD)
    with refused(rf"{SHARD} is truncated"):
        open_checkpoint(sharded)


def test_an_index_that_lists_what_its_shard_lacks(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["language_model.model.extra.weight"] = SHARD
    (sharded / INDEX).write_text(json.dumps(index))
    with refused(rf"{SHARD} lacks tensors that {INDEX} says it holds: language_model.model.extra.weight"):
        open_checkpoint(sharded)


def test_an_index_that_does_not_list_what_its_shard_holds(sharded):
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["language_model.model.norm.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    with refused(rf"safetensors holds tensors that {INDEX} does not: language_model.model.norm.weight"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("written", [{}, {"weight_map": None}, {"weight_map": {"norm.weight": 3}}])
def test_an_index_that_is_none(written, sharded):
    (sharded / INDEX).write_text(json.dumps(written))
    with refused(rf"{INDEX} has no weight_map"):
        open_checkpoint(sharded)


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("language_model.model.layers.2.mlp.up_proj.weight", "language/layers/2/mlp/up/kernel"),
        ("language_model.lm_head.weight", "language/head"),
        ("vision_tower.vision_model.encoder.layers.3.layer_norm1.bias", "vision/layers/3/norm1/bias"),
        ("multi_modal_projector.linear_2.bias", "projector/linear_2/bias"),
    ],
)
def test_a_missing_tensor(lost, named, hf, net):
    rewrite(hf, net, lambda tensors: drop(tensors, lost))
    with refused(rf"hf lacks {named} \({lost}\)$"):
        open_checkpoint(hf)


@pytest.mark.parametrize("spelling", ["4.52 in memory", "5.x on disk"])
def test_messages_have_the_spelling_of_the_file(spelling, hf, net):
    tensors = state(net, spelling)
    norm, up = (
        next(key for key in tensors if key.endswith(end)) for end in ("model.norm.weight", "1.mlp.up_proj.weight")
    )
    layouts.write_safetensors(hf, drop(tensors, norm) | {up: torch.ones(3, 4)})
    with refused(
        rf"lacks language/norm/scale \({norm}\); it holds language/layers/1/mlp/up/kernel \({up}\) as \(4, 3\)"
    ):
        open_checkpoint(hf)


def test_many_missing_tensors_are_counted(hf, net):
    rewrite(hf, net, lambda tensors: drop(tensors, "vision_tower"))
    with refused(r"hf lacks vision/class_embedding \(vision_tower.vision_model.embeddings.class_\w+\), .* and 63 more"):
        open_checkpoint(hf)


@pytest.mark.parametrize(
    "extra",
    [
        "language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "language_model.model.layers.0.mlp.up_proj.weight_scale",
        "image_newline",
    ],
)
def test_an_unknown_tensor(extra, hf, net):
    rewrite(hf, net, lambda tensors: tensors | {extra: torch.ones(3)})
    with refused(rf"hf holds unexpected tensors: {extra}"):
        open_checkpoint(hf)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("language_model.model.layers.4.mlp.up_proj.weight", "language/layers/4/mlp/up/kernel"),
        ("language_model.model.layers.0.self_attn.q_proj.bias", "language/layers/0/attention/q/bias"),
    ],
)
def test_a_known_tensor_that_this_model_has_no_place_for(extra, named, hf, net):
    rewrite(hf, net, lambda tensors: tensors | {extra: torch.ones(3)})
    with refused(rf"hf holds unexpected {named} \({extra}\)"):
        open_checkpoint(hf)


@pytest.mark.parametrize(
    ("key", "shape", "named"),
    [
        (
            "language_model.model.embed_tokens.weight",
            (256, 65),
            r"/embedding .* as \(256, 65\) where \(256, 64\)",
        ),
        ("language_model.model.layers.1.mlp.up_proj.weight", (64, 96), r"up/kernel .* as \(96, 64\) where \(64, 96\)"),
        ("language_model.model.norm.weight", (64, 1), r"language/norm/scale .* as \(64, 1\) where \(64,\)"),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", (128, 4, 4, 3), "patch_embedding/kernel .* as"),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", (0, 3, 4, 4), "patch_embedding/kernel .* as"),
    ],
)
def test_a_wrongly_shaped_tensor(key, shape, named, hf, net):
    rewrite(hf, net, lambda tensors: tensors | {key: torch.ones(shape)})
    with refused(r"hf holds ", named, key, "is expected"):
        open_checkpoint(hf)


def test_all_that_is_wrong_is_said_at_once(hf, net):
    lost, found = "language_model.model.norm.weight", "language_model.model.layers.9.input_layernorm.weight"
    rewrite(hf, net, lambda tensors: drop(tensors, lost) | {found: torch.ones(64)})
    with refused(r"hf lacks language/norm/scale \(.*\); it holds unexpected language/layers/9/norm1/scale \(.*\)$"):
        open_checkpoint(hf)


@pytest.mark.parametrize("spelling", ["4.52 in memory", "5.x on disk"])
def test_a_tensor_under_two_spellings(spelling, hf, net):
    again = pick(state(net, spelling), "embeddings.class_embedding")
    rewrite(hf, net, lambda tensors: tensors | again)
    with refused(r"hf holds the same tensor under two spellings: .*embeddings.class_embedding"):
        open_checkpoint(hf)


def test_a_type_that_is_not_supported(hf, net):
    key = "language_model.model.norm.weight"
    rewrite(hf, net, lambda tensors: tensors | {key: tensors[key].to(torch.float8_e4m3fn)})
    with refused(rf"tensor {key} in .*model.safetensors has type F8_E4M3, which is not supported"):
        open_checkpoint(hf)


def test_weights_that_are_whole_numbers(hf, net):
    key = "language_model.model.norm.weight"
    rewrite(hf, net, lambda tensors: tensors | {key: tensors[key].to(torch.int8)})
    with refused(r"holds language/norm/scale \(language_model.model.norm.weight\) as int8"):
        open_checkpoint(hf)


# --- fields of config.json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda raw: raw.update(model_type="idefics"), r"config.json has the unknown model_type 'idefics': known are"),
        (lambda raw: raw.pop("model_type"), r"config.json has the unknown model_type None"),
        (lambda raw: raw.pop("vision_config"), r"config.json has no vision_config"),
        (lambda raw: raw.update(text_config=None), r"config.json has no text_config"),
        (lambda raw: raw["text_config"].update(model_type="gpt2"), r"text_config of .* has model_type 'gpt2'"),
        (
            lambda raw: raw["vision_config"].update(model_type="siglip_vision_model"),
            r"vision_config of .* has model_type 'siglip_vision_model'.* expected clip_vision_model",
        ),
        (lambda raw: raw["text_config"].update(hidden_act="gelu"), r"text_config of .* has hidden_act 'gelu'"),
        (lambda raw: raw["vision_config"].update(hidden_act="relu"), r"vision_config of .* has hidden_act 'relu'"),
        (lambda raw: raw.update(projector_hidden_act="relu"), r"config.json has projector_hidden_act 'relu'"),
        (
            lambda raw: raw["text_config"].update(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
            r"text_config of .* has rope type 'yarn', .* known are default, linear, llama3",
        ),
        (
            lambda raw: raw["text_config"].update(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
            r"text_config of .* has rope scaling 'linear' without factor",
        ),
        (lambda raw: raw["text_config"].update(attention_bias=True), r"text_config of .* has attention_bias True"),
        (lambda raw: raw.update(vision_feature_layer=7), r"asks for vision_feature_layer 7, .* tower of 4 layers"),
        (lambda raw: raw.update(vision_feature_select_strategy="cls"), r"vision_feature_select_strategy 'cls'"),
        (
            lambda raw: raw["text_config"].update(hidden_size="64"),
            r"text_config of .* has hidden_size '64', expected a whole number from 1 to",
        ),
        (
            lambda raw: raw["vision_config"].update(image_size=[12, 12]),
            r"vision_config of .* has image_size \[12, 12\], expected a whole number from 1 to",
        ),
        (
            lambda raw: raw["text_config"].update(num_attention_heads=0),
            r"text_config of .* has num_attention_heads 0, expected a whole number from 1 to",
        ),
        (lambda raw: raw.update(model_type=["llava"]), r"config.json has model_type \['llava'\], expected a text"),
        (
            lambda raw: raw["vision_config"].pop("num_attention_heads"),
            r"config.json describes a vision tower of width 128, which its 12 heads do not divide",
        ),
        (lambda raw: raw["text_config"].update(rms_norm_eps="1e-5"), r"has rms_norm_eps '1e-5', expected a positive"),
        (
            lambda raw: raw["text_config"].update(rms_norm_eps=float("nan")),
            r"has rms_norm_eps nan, expected",
        ),
        (lambda raw: raw["text_config"].update(rope_parameters=[1e4]), r"has the rope parameters \[10000.0\]"),
        (
            lambda raw: raw["text_config"].update(rope_parameters={"rope_theta": "1e4"}),
            r"text_config of .* has rope_theta '1e4', expected a positive number",
        ),
        (lambda raw: raw.update(vision_feature_layer=None), r"asks for vision_feature_layer None"),
        (lambda raw: raw.update(pad_token_id="0"), r"has pad_token_id '0', expected the number of a token"),
        (lambda raw: raw.update(image_token_index=[250]), r"has image_token_index \[250\], expected the number"),
        (lambda raw: raw["text_config"].update(eos_token_id="</s>"), r"has eos_token_id '</s>', expected the number"),
    ],
)
def test_a_field_that_cannot_be_read(change, pattern, hf):
    change_config(hf, change)
    with refused(pattern):
        open_checkpoint(hf)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"model_type": "llava_mpt"}, r"config.json has model_type 'llava_mpt'"),
        ({"mm_projector_type": "resampler"}, r"has mm_projector_type 'resampler', .* expected mlp2x_gelu or linear"),
        ({"mm_projector_type": "linear"}, r"holds unexpected projector/linear_2/"),
        ({"mm_vision_select_feature": "cls"}, r"has mm_vision_select_feature 'cls'"),
        ({"mm_vision_select_layer": 9}, r"asks for vision_feature_layer 9"),
        ({"mm_vision_tower": "laion/huge"}, r"names the vision tower 'laion/huge', whose numbers are not known"),
    ],
)
def test_a_field_of_the_original_layout_that_cannot_be_read(changes, pattern, net, tmp_path):
    with refused(pattern):
        open_checkpoint(layouts.original(tmp_path, net, **changes))


# --- parts that are missing or given twice --------------------------------------------------------------------------


def test_a_clip_alone_is_no_model(clip):
    with refused(r"is a vision tower alone: give it as vision=… beside a language model"):
        open_checkpoint(clip)


def test_a_language_model_alone_is_no_model(language_model):
    with refused(r"is a language model alone: give the folder of a CLIP vision tower \(vision=…\)"):
        open_checkpoint(language_model)


def test_a_language_model_is_no_vision_tower(language_model):
    with refused(r"config.json has model_type 'llama', expected a CLIP vision tower"):
        open_checkpoint(language_model, vision=language_model)


def test_an_original_without_its_vision_tower(net, tmp_path):
    layouts.original(tmp_path, net, drop(state(net, "original"), "vision_tower"))
    with refused(r"holds no vision tower and openai/clip-vit-large-patch14-336 is not a folder here", r"\(vision=…\)"):
        open_checkpoint(tmp_path)


def test_an_original_without_its_projector(net, tmp_path):
    layouts.original(tmp_path, net, drop(state(net, "original"), "mm_projector"))
    with refused(r"holds no projector and no mm_projector.bin is in it: .* \(projector=…\)"):
        open_checkpoint(tmp_path)


def test_a_projector_file_that_is_not_there(net, tmp_path):
    layouts.original(tmp_path, net, drop(state(net, "original"), "mm_projector"))
    with refused(r"Cannot read '.*gone.bin'"):
        open_checkpoint(tmp_path, projector=tmp_path / "gone.bin")


def test_a_file_that_is_no_projector(language_model, clip, net, tmp_path):
    torch.save(pick(state(net, "original"), "mm_projector", "model.norm"), tmp_path / "mm_projector.bin")
    with refused(r"mm_projector.bin is not a projector: it holds language/norm/scale"):
        open_checkpoint(language_model, vision=clip, projector=tmp_path / "mm_projector.bin")


def test_a_projector_for_another_width(language_model, clip, net, tmp_path):
    projector = {"model.mm_projector.weight": torch.ones(32, 128), "model.mm_projector.bias": torch.ones(32)}
    torch.save(projector, tmp_path / "mm_projector.bin")
    with refused(r"holds projector/linear_1/bias \(model.mm_projector.bias\) as \(32,\) where \(64,\) is expected"):
        open_checkpoint(language_model, vision=clip, projector=tmp_path / "mm_projector.bin")


@pytest.mark.parametrize("name", ["vision", "projector"])
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_a_part_that_is_there_already(layout, name, net, clip, tmp_path):
    folder = layouts.hf(tmp_path, net) if layout == "hf" else layouts.original(tmp_path, net)
    with refused(rf"brings its own {name}", "leave .* out"):
        open_checkpoint(folder, **{name: clip})


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


# --- our own format -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_orbax(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "ours"
    convert(whole, folder, "orbax")
    return folder


@pytest.fixture
def ours(whole_orbax, tmp_path):
    return Path(shutil.copytree(whole_orbax, tmp_path / "ours"))


def load_all(folder):
    for tensor in open_checkpoint(folder).tensors.values():
        tensor.load()


def data_file(folder):
    """The largest file: arrays lie in it."""
    return max(
        (file for file in (folder / "params").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: data_file(folder).unlink(),
        lambda folder: truncate(data_file(folder), by=data_file(folder).stat().st_size // 2),
        lambda folder: (folder / "params" / "_METADATA").unlink(),
        lambda folder: (folder / "params" / "_METADATA").write_text("{"),
        lambda folder: (folder / "params" / "manifest.ocdbt").unlink(),
        lambda folder: shutil.rmtree(folder / "params"),
    ],
    ids=["no data", "half the data", "no metadata", "half the metadata", "no manifest", "no params"],
)
def test_an_incomplete_orbax_folder(damage, ours):
    damage(ours)
    with refused(r"ours/params"):
        load_all(ours)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda raw: raw.update(version=9), r"ours/config.json has version 9, this release reads version 1"),
        (lambda raw: raw.update(architecture=[1]), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw.pop("architecture"), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw["architecture"]["language"].pop("depth"), r"ours/config.json does not describe a model"),
        (lambda raw: raw.pop("compression"), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw["architecture"]["language"].update(depth=5), r"ours lacks language/layers/4/"),
    ],
    ids=["version", "a list", "architecture", "depth", "compression", "another depth"],
)
def test_a_config_of_ours_that_cannot_be_read(change, pattern, ours):
    change_config(ours, change)
    with refused(pattern):
        open_checkpoint(ours)


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
