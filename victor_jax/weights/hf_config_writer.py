"""Our architecture -> config.json in the spelling that transformers 4.x and 5.x both read."""

from dataclasses import asdict
from typing import Any

from victor_jax.models.config import LanguageConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import LinearScaling, Llama3Scaling, Rope
from victor_jax.weights.hf_config import ORIGINAL_TYPES

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}


def hf_config(config: VLMConfig, dtype: str) -> dict[str, Any]:
    """config.json of the Hugging Face layout."""
    levels = [level - config.vision.depth - 1 for level in config.feature_levels]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": config.image_token,
        "pad_token_id": config.pad_token,
        "image_seq_length": config.features_per_image,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": config.projector.bias,
        "vision_feature_layer": levels[0] if len(levels) == 1 else levels,
        "vision_feature_select_strategy": "full" if config.keep_class_token else "default",
        "tie_word_embeddings": config.language.tied_embeddings,
        "torch_dtype": dtype,
        "text_config": {**_language(config.language), "eos_token_id": _end(config), "torch_dtype": dtype},
        "vision_config": vision_dict(config.vision),
    }


def llava_config(config: VLMConfig, dtype: str) -> dict[str, Any]:
    """config.json of the original layout. It has no room for the vision tower's numbers: they go in a key of ours."""
    family = config.language.family
    original = {hf: ours for ours, hf in ORIGINAL_TYPES.items() if ours != "llava"}[family]
    (level,) = config.feature_levels
    return {
        **_language(config.language),
        "architectures": [f"Llava{_CLASSES[family]}ForCausalLM"],
        "model_type": original,
        "eos_token_id": _end(config),
        "pad_token_id": config.pad_token,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "linear" if config.projector.kind == "linear" else "mlp2x_gelu",
        "mm_hidden_size": config.vision.width,
        "mm_vision_select_layer": level - config.vision.depth - 1,
        "mm_vision_select_feature": "cls_patch" if config.keep_class_token else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "torch_dtype": dtype,
        "victor_jax": {"vision_config": vision_dict(config.vision), "image_token": config.image_token},
    }


def vision_dict(config: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }


def _language(config: LanguageConfig) -> dict[str, Any]:
    written = {
        "model_type": config.family,
        "architectures": [f"{_CLASSES[config.family]}ForCausalLM"],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config.rope),
    }
    if config.family == "mistral":
        written["sliding_window"] = config.sliding_window
    return written


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case LinearScaling(factor):
            return {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling():
            numbers = asdict(rope.scaling)
            numbers["original_max_position_embeddings"] = numbers.pop("original_max_position")
            return {"rope_type": "llama3", **numbers}
        case _:
            return None


def _end(config: VLMConfig) -> int | list[int] | None:
    match config.end_tokens:
        case ():
            return None
        case (one,):
            return one
        case several:
            return list(several)
