"""config.json of Hugging Face and of the original LLaVA -> our architecture, and back.

Fields that a file leaves out take the defaults of the transformers configuration class of that model type.
"""

from collections.abc import Mapping
from typing import Any

from victor_jax.errors import UserError
from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import LinearScaling, Llama3Scaling, Rope

LANGUAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "sliding_window": None,
        "eos_token_id": 2,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "eos_token_id": 2,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "sliding_window": None,
        "eos_token_id": None,
    },
}
CLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# A null stands for the default, but here: no window at all, as many key-value heads as heads.
NULL_IS_A_VALUE = ("sliding_window", "num_key_value_heads")
# The original layout writes model types of its own; the language tower is the part after "llava_".
ORIGINAL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}


def language_config(raw: Mapping[str, Any], where: str, model_type: str | None = None) -> LanguageConfig:
    """The language part of a configuration; `where` names the file and the section, for messages."""
    model_type = model_type or raw.get("model_type", "llama")
    if model_type not in LANGUAGE_DEFAULTS:
        raise UserError(
            f"{where} has model_type {model_type!r}, which is not supported: known language towers are "
            f"{', '.join(LANGUAGE_DEFAULTS)}"
        )
    written = {key: value for key, value in raw.items() if value is not None or key in NULL_IS_A_VALUE}
    value = {**LANGUAGE_DEFAULTS[model_type], **written}
    _refuse(value, where, "hidden_act", ("silu",), "silu")
    _refuse(value, where, "mlp_bias", (False,), False)
    if model_type != "qwen2":
        _refuse(value, where, "attention_bias", (False,), False)
    else:
        _refuse(value, where, "use_sliding_window", (False,), False)
    width, heads = _whole(value, where, "hidden_size"), _whole(value, where, "num_attention_heads")
    return LanguageConfig(
        family=model_type,  # type: ignore[arg-type]  # checked above
        width=width,
        mlp_width=_whole(value, where, "intermediate_size"),
        depth=_whole(value, where, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(value, where, "num_key_value_heads") if value["num_key_value_heads"] is not None else heads,
        head_dim=_whole(value, where, "head_dim") if "head_dim" in value else width // heads,
        vocabulary=_whole(value, where, "vocab_size"),
        norm_eps=value["rms_norm_eps"],
        rope=_rope(value, where),
        qkv_bias=model_type == "qwen2",
        tied_embeddings=bool(value.get("tie_word_embeddings", False)),
        sliding_window=value["sliding_window"] if model_type == "mistral" else None,
        max_positions=value["max_position_embeddings"],
    )


def _rope(value: Mapping[str, Any], where: str) -> Rope:
    """Version 5 writes rope_parameters; version 4 rope_theta and rope_scaling."""
    written = dict(value.get("rope_parameters") or value.get("rope_scaling") or {})
    theta = float(written.get("rope_theta") or value.get("rope_theta") or 10000.0)
    kind = written.get("rope_type") or written.get("type") or "default"
    try:
        match kind:
            case "default":
                return Rope(theta)
            case "linear":
                return Rope(theta, LinearScaling(float(written["factor"])))
            case "llama3":
                return Rope(
                    theta,
                    Llama3Scaling(
                        factor=float(written["factor"]),
                        low_freq_factor=float(written["low_freq_factor"]),
                        high_freq_factor=float(written["high_freq_factor"]),
                        original_max_position=int(written["original_max_position_embeddings"]),
                    ),
                )
    except KeyError as missing:
        raise UserError(f"{where} has rope scaling {kind!r} without {missing.args[0]}") from None
    raise UserError(f"{where} has rope type {kind!r}, which is not supported: known are default, linear, llama3")


def vision_config(raw: Mapping[str, Any], where: str) -> VisionConfig:
    model_type = raw.get("model_type", "clip_vision_model")
    if model_type != "clip_vision_model":
        raise UserError(f"{where} has model_type {model_type!r}, which is not supported: expected clip_vision_model")
    value = {**CLIP_DEFAULTS, **raw}
    _refuse(value, where, "hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
    return VisionConfig(
        width=_whole(value, where, "hidden_size"),
        mlp_width=_whole(value, where, "intermediate_size"),
        depth=_whole(value, where, "num_hidden_layers"),
        heads=_whole(value, where, "num_attention_heads"),
        image_size=_whole(value, where, "image_size"),
        patch_size=_whole(value, where, "patch_size"),
        activation=value["hidden_act"],
        norm_eps=value["layer_norm_eps"],
    )


def vlm_config(raw: Mapping[str, Any], file: str, generation: Mapping[str, Any]) -> VLMConfig:
    """A Hugging Face LLaVA configuration."""
    for section in ("text_config", "vision_config"):
        if not isinstance(raw.get(section), Mapping):
            raise UserError(f"{file} has no {section}: it does not describe a whole LLaVA")
    text = dict(raw["text_config"])
    if "vocab_size" in raw:  # version 4.37 wrote it at the top
        text.setdefault("vocab_size", raw["vocab_size"])
    text["tie_word_embeddings"] = bool(text.get("tie_word_embeddings") or raw.get("tie_word_embeddings"))
    vision = vision_config(raw["vision_config"], f"vision_config of {file}")
    _refuse(raw, file, "projector_hidden_act", ("gelu",), "gelu")
    strategy = raw.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise UserError(f"{file} has vision_feature_select_strategy {strategy!r}, expected default or full")
    defaults = LANGUAGE_DEFAULTS.get(text.get("model_type", "llama"), {})
    end = generation.get("eos_token_id", text.get("eos_token_id", defaults.get("eos_token_id")))
    pad = raw.get("pad_token_id", generation.get("pad_token_id", text.get("pad_token_id")))
    return VLMConfig(
        vision=vision,
        projector=ProjectorConfig("mlp", bool(raw.get("multimodal_projector_bias", True))),
        language=language_config(text, f"text_config of {file}"),
        feature_levels=feature_levels(raw.get("vision_feature_layer", -2), vision.depth, file),
        keep_class_token=strategy == "full",
        image_token=raw.get("image_token_index", raw.get("image_token_id", 32000)),
        pad_token=0 if pad is None else pad,
        end_tokens=end_tokens(end),
    )


def feature_levels(layer: int | list[int], depth: int, file: str) -> tuple[int, ...]:
    """Indices into hidden_states, where 0 is the embedding and -1 the last layer -> layers run before each."""
    wanted = layer if isinstance(layer, list | tuple) else [layer]
    levels = tuple(level + depth + 1 if level < 0 else level for level in wanted)
    if not levels or not all(0 <= level <= depth for level in levels):
        raise UserError(
            f"{file} asks for vision_feature_layer {layer}, which is outside the vision tower of {depth} layers"
        )
    return levels


def end_tokens(written: int | list[int] | None) -> tuple[int, ...]:
    if written is None:
        return ()
    return tuple(written) if isinstance(written, list | tuple) else (written,)


def _whole(value: Mapping[str, Any], where: str, key: str) -> int:
    number = value[key]
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{where} has {key} {number!r}, expected a positive whole number")
    return number


def _refuse(raw: Mapping[str, Any], where: str, key: str, allowed: tuple[Any, ...], default: Any) -> None:
    value = raw.get(key, default)
    if value not in allowed:
        raise UserError(
            f"{where} has {key} {value!r}, which is not supported: expected {' or '.join(repr(a) for a in allowed)}"
        )
