"""config.json of transformers, read to the numbers that transformers itself reads, and written back."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the configurations are those of transformers")

import transformers

from victor_jax.errors import UserError
from victor_jax.models.config import LanguageConfig, VisionConfig
from victor_jax.ops.rope import LinearScaling, Llama3Scaling, Rope
from victor_jax.weights.hf_config import (
    CLIP_DEFAULT,
    LANGUAGE_DEFAULTS,
    hf_dict,
    language_config,
    vision_dict,
    vlm_config,
)

# What llava-hf writes for the 7B model: nearly everything is left to the defaults of the classes.
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "ignore_index": -100,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def read(raw, generation=None):
    return vlm_config(raw, "config.json", generation or {})


def read_language(**fields):
    return language_config(fields, "config.json")


def with_vision_layer(layer):
    return read(LLAVA_7B | {"vision_feature_layer": layer})


# --- defaults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", LANGUAGE_DEFAULTS)
def test_defaults_are_those_of_the_configuration_class(model_type):
    theirs = transformers.AutoConfig.for_model(model_type)
    ours = LANGUAGE_DEFAULTS[model_type]
    filled_in = {"num_key_value_heads": ours["num_key_value_heads"] or ours["num_attention_heads"]}
    assert {key: getattr(theirs, key, None) for key in ours} == ours | filled_in


def test_vision_defaults_are_those_of_the_configuration_class():
    theirs = transformers.CLIPVisionConfig()
    ours = vision_dict(CLIP_DEFAULT)
    assert {key: getattr(theirs, key) for key in ours} == ours


@pytest.mark.parametrize("model_type", LANGUAGE_DEFAULTS)
def test_left_out_fields_mean_what_they_mean_to_transformers(model_type):
    theirs = transformers.AutoConfig.for_model(model_type, hidden_size=2048, num_attention_heads=16)
    ours = read_language(model_type=model_type, hidden_size=2048, num_attention_heads=16)
    assert (ours.heads, ours.kv_heads) == (16, theirs.num_key_value_heads)
    assert ours.head_dim == 128
    assert ours.rope == Rope(theirs.rope_parameters["rope_theta"])
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)


@pytest.mark.parametrize("model_type", LANGUAGE_DEFAULTS)
def test_null_key_value_heads_mean_as_many_as_heads(model_type):
    assert read_language(model_type=model_type, num_attention_heads=16, num_key_value_heads=None).kv_heads == 16


@pytest.mark.parametrize(("window", "expected"), [({}, 4096), ({"sliding_window": None}, None)])
def test_a_sliding_window_of_null_means_none(window, expected):
    assert read_language(model_type="mistral", **window).sliding_window == expected


def test_the_sparse_config_of_llava_hf_gives_the_7b_numbers():
    config = read(LLAVA_7B)
    assert config.vision == VisionConfig(1024, 4096, 24, 16, 336, 14, "quick_gelu", 1e-5)
    assert config.language == LanguageConfig(
        family="llama",
        width=4096,
        mlp_width=11008,
        depth=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        vocabulary=32064,
        norm_eps=1e-5,
        rope=Rope(10000.0),
        qkv_bias=False,
        tied_embeddings=False,
        sliding_window=None,
        max_positions=4096,
    )
    assert config.features_per_image == 576
    assert config.feature_levels == (23,)
    assert (config.image_token, config.pad_token, config.end_tokens) == (32000, 32001, (2,))


def test_a_vocabulary_size_at_the_top_counts_where_text_config_has_none():
    """Version 4.37 wrote it so."""
    text = {key: value for key, value in LLAVA_7B["text_config"].items() if key != "vocab_size"}
    raw = LLAVA_7B | {"text_config": text, "vocab_size": 32064}
    assert read(raw).language.vocabulary == 32064


@pytest.mark.parametrize("top", [None, False, True])
@pytest.mark.parametrize("text", [None, False, True])
def test_the_embedding_is_tied_where_transformers_ties_it(top, text):
    raw = {key: value for key, value in LLAVA_7B.items() if key != "tie_word_embeddings"}
    if top is not None:
        raw["tie_word_embeddings"] = top
    if text is not None:
        raw["text_config"] = raw["text_config"] | {"tie_word_embeddings": text}
    expected = transformers.LlavaConfig.from_dict(json.loads(json.dumps(raw))).tie_word_embeddings
    assert read(raw).language.tied_embeddings == expected


# --- rotary embedding -----------------------------------------------------------------------------------------------

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("version_4", "version_5", "expected"),
    [
        ({}, {}, Rope(10000.0)),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(5e5)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
            Rope(1e4, LinearScaling(2.0)),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
    ],
    ids=["absent", "default", "linear", "llama3"],
)
def test_both_spellings_of_the_rotary_embedding_read_the_same(version_4, version_5, expected):
    assert read_language(model_type="llama", **version_4).rope == expected
    assert read_language(model_type="llama", **version_5).rope == expected


# --- which vision layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "levels"),
    [(-2, (23,)), (-1, (24,)), (23, (23,)), (0, (0,)), (24, (24,)), ([-3, 4, -1], (22, 4, 24)), ([-2], (23,))],
)
def test_a_vision_feature_layer_is_an_index_into_the_hidden_states(layer, levels):
    assert with_vision_layer(layer).feature_levels == levels


@pytest.mark.parametrize("layer", [25, -26, [-2, 99], []])
def test_a_vision_feature_layer_outside_the_tower_is_refused(layer):
    with pytest.raises(UserError, match=r"config.json asks for vision_feature_layer .* tower of 24 layers"):
        with_vision_layer(layer)


# --- end tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "text", "expected"),
    [
        ({}, {}, (2,)),
        ({}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [2, 9]}, {"eos_token_id": 7}, (2, 9)),
        ({}, {"eos_token_id": None}, ()),
    ],
)
def test_the_generation_config_decides_where_an_answer_ends(generation, text, expected):
    raw = LLAVA_7B | {"text_config": LLAVA_7B["text_config"] | text}
    assert read(raw, generation).end_tokens == expected


# --- written configurations -----------------------------------------------------------------------------------------

WRITTEN = {
    "7b": LLAVA_7B,
    "grouped heads of their own width": LLAVA_7B | {"text_config": {"model_type": "llama", **SMALL, "head_dim": 24}},
    "llama3": LLAVA_7B
    | {"text_config": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}},
    "linear": LLAVA_7B | {"text_config": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}}},
    "mistral": LLAVA_7B | {"text_config": {"model_type": "mistral"}},
    "mistral without a window": LLAVA_7B | {"text_config": {"model_type": "mistral", "sliding_window": None}},
    "qwen2": LLAVA_7B | {"text_config": {"model_type": "qwen2", "rope_theta": 1e6}},
    "tied": {k: v for k, v in LLAVA_7B.items() if k != "tie_word_embeddings"}
    | {"text_config": {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True}},
    "joined layers": LLAVA_7B | {"vision_feature_layer": [-2, 4]},
    "class token": LLAVA_7B | {"vision_feature_select_strategy": "full", "multimodal_projector_bias": False},
    "several ends": LLAVA_7B | {"text_config": {"model_type": "llama", "eos_token_id": [2, 9]}},
    "no end": LLAVA_7B | {"text_config": {"model_type": "llama", "eos_token_id": None}},
    "another tower": LLAVA_7B
    | {"vision_config": {"model_type": "clip_vision_model", "hidden_act": "gelu", "layer_norm_eps": 1e-3}},
}


@pytest.fixture(params=WRITTEN)
def config(request):
    return read(WRITTEN[request.param])


def test_a_written_config_reads_back_equal(config):
    assert read(json.loads(json.dumps(hf_dict(config, "bfloat16")))) == config


def test_transformers_reads_the_same_numbers_from_a_written_config(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_dict(config, "bfloat16")))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.LlavaConfig)
    assert read(theirs.to_dict()) == config
    assert theirs.image_seq_length == config.features_per_image


def test_what_transformers_saves_of_a_written_config_reads_back_equal(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_dict(config, "bfloat16")))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert read(saved) == config


def test_the_padding_token_falls_back_to_zero():
    raw = {key: value for key, value in LLAVA_7B.items() if key != "pad_token_id"}
    assert read(raw) == replace(read(LLAVA_7B), pad_token=0)
