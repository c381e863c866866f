"""A mistake ends in one sentence that names the file, the tensor or the field."""

import json
import os

import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

import layouts
import torch
from damage import INDEX, SHARD, refused, rewrite, truncate
from layouts import change_config, drop, pick, state

from victor_jax.weights.read import open_checkpoint

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
