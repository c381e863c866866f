"""config.json of Hugging Face and of the original LLaVA <-> our architecture.

Written in the spelling that transformers 4.x and 5.x both read. transformers' own configuration classes would do the
reading, but importing them takes seconds: as long as the whole rest of a start.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from victor_jax.errors import UserError
from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import LinearScaling, Llama3Scaling, Rope

# Our field -> the key of the file, where both hold the same value.
VISION_KEYS = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
# What a file leaves out: the defaults of transformers' configuration class of that model type.
CLIP_DEFAULT = VisionConfig(
    width=768, mlp_width=3072, depth=12, heads=12, image_size=224, patch_size=32, activation="quick_gelu", norm_eps=1e-5
)
# Of any size, and of layers: beyond, a number is damaged, and the names of all layers would fill memory.
MOST, MOST_LAYERS = 10_000_000, 1_000
MOST_ADDED = 1_000  # tokens beyond the vocabulary: an export gives each of them a row of the embedding
FAMILIES = ("llama", "mistral", "qwen2")
# The key of the file -> our field, where both hold the same value, and the default of each family.
LANGUAGE: dict[str, tuple[Any, ...]] = {
    "hidden_size": ("width", 4096, 4096, 4096),
    "intermediate_size": ("mlp_width", 11008, 14336, 22016),
    "num_hidden_layers": ("depth", 32, 32, 32),
    "num_attention_heads": ("heads", 32, 32, 32),
    "num_key_value_heads": ("kv_heads", None, 8, 32),
    "vocab_size": ("vocabulary", 32000, 32000, 151936),
    "rms_norm_eps": ("norm_eps", 1e-6, 1e-6, 1e-6),
    "tie_word_embeddings": ("tied_embeddings", False, False, False),
    "max_position_embeddings": ("max_positions", 2048, 131072, 32768),
    "sliding_window": (None, None, 4096, None),
    "eos_token_id": (None, 2, 2, None),
}
LANGUAGE_KEYS = {field: key for key, (field, *_) in LANGUAGE.items() if field} | {"head_dim": "head_dim"}
LANGUAGE_DEFAULTS = {
    family: {key: row[column] for key, row in LANGUAGE.items()} for column, family in enumerate(FAMILIES, start=1)
}
# A null means the default, but for these: no window at all, as many key-value heads as heads.
NULL_IS_A_VALUE = ("sliding_window", "num_key_value_heads")
# The original layout has model types of its own; the language tower is the part after "llava_".
ORIGINAL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}


# --- reading --------------------------------------------------------------------------------------------------------


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
    language = language_config(text, f"text_config of {file}")
    choice(raw, file, "projector_hidden_act", "gelu")
    end = generation if "eos_token_id" in generation else text
    pad = raw.get("pad_token_id", generation.get("pad_token_id", text.get("pad_token_id")))
    config = VLMConfig(
        vision=vision,
        projector=ProjectorConfig("mlp", bool(raw.get("multimodal_projector_bias", True))),
        language=language,
        feature_levels=feature_levels(raw.get("vision_feature_layer", -2), vision.depth, file),
        keep_class_token=choice(raw, file, "vision_feature_select_strategy", "default", "full") == "full",
        image_token=token(raw.get("image_token_index", raw.get("image_token_id", 32000)), "image_token_index", file),
        pad_token=pad_token(pad, file),
        end_tokens=end_tokens(end, language.family, file),
    )
    return whole(config, file)


def whole(config: VLMConfig, file: str) -> VLMConfig:
    """The configuration, if its numbers fit together."""
    vision, language, problem = config.vision, config.language, ""
    if vision.width % vision.heads:
        problem = f"a vision tower of width {vision.width}, which its {vision.heads} heads do not divide"
    elif vision.image_size < vision.patch_size:
        problem = f"images of {vision.image_size} pixels in patches of {vision.patch_size}"
    elif language.head_dim % 2:
        problem = f"heads of {language.head_dim} channels, and RoPE wants an even number"
    elif language.heads % language.kv_heads:
        problem = f"{language.heads} heads, which {language.kv_heads} key-value heads do not divide"
    elif not config.feature_levels or not all(0 <= level <= vision.depth for level in config.feature_levels):
        problem = f"features after {list(config.feature_levels)} layers of a vision tower of {vision.depth}"
    elif max(config.image_token, config.pad_token) > language.vocabulary + MOST_ADDED:
        problem = (
            f"{language.vocabulary} tokens, the image token {config.image_token} and the padding token "
            f"{config.pad_token}: they do not belong together"
        )
    if problem:
        raise UserError(f"{file} describes {problem}")
    return config


def language_config(raw: Mapping[str, Any], where: str, model_type: str | None = None) -> LanguageConfig:
    """The language part of a configuration; `where` names the file and the section, for messages."""
    model_type = model_type or raw.get("model_type", "llama")
    if not isinstance(model_type, str) or model_type not in LANGUAGE_DEFAULTS:
        raise UserError(
            f"{where} has model_type {model_type!r}, which is not supported: known language towers are "
            f"{', '.join(LANGUAGE_DEFAULTS)}"
        )
    value = LANGUAGE_DEFAULTS[model_type] | {k: v for k, v in raw.items() if v is not None or k in NULL_IS_A_VALUE}
    choice(value, where, "hidden_act", "silu")
    choice(value, where, "mlp_bias", False)
    choice(value, where, "use_sliding_window" if model_type == "qwen2" else "attention_bias", False)
    width, heads = (checked(value[key], int, key, where) for key in ("hidden_size", "num_attention_heads"))
    if value["num_key_value_heads"] is None:
        value["num_key_value_heads"] = heads
    window = value["sliding_window"] if model_type == "mistral" else None
    value.setdefault("head_dim", width // heads)
    return LanguageConfig(
        **_fields(LanguageConfig, LANGUAGE_KEYS, value, where),
        family=model_type,  # type: ignore[arg-type]  # checked above
        rope=_rope(value, where),
        qkv_bias=model_type == "qwen2",
        sliding_window=checked(window, int, "sliding_window", where) if window is not None else None,
    )


def vision_config(raw: Mapping[str, Any], where: str) -> VisionConfig:
    choice(raw, where, "model_type", "clip_vision_model")
    value = {**vision_dict(CLIP_DEFAULT), **raw}
    return VisionConfig(**_fields(VisionConfig, VISION_KEYS, value, where))


def feature_levels(layer: Any, depth: int, file: str) -> tuple[int, ...]:
    """Indices into hidden_states, where 0 is the embedding and -1 the last layer -> layers run before each."""
    wanted = layer if isinstance(layer, list) else [layer]
    levels = tuple(level + depth + 1 if level < 0 else level for level in wanted if _is_int(level))
    if len(levels) != len(wanted) or not levels or not all(0 <= level <= depth for level in levels):
        raise UserError(
            f"{file} asks for vision_feature_layer {layer}, which is outside the vision tower of {depth} layers"
        )
    return levels


def end_tokens(raw: Mapping[str, Any], family: str, file: str) -> tuple[int, ...]:
    written = raw.get("eos_token_id", LANGUAGE_DEFAULTS[family]["eos_token_id"])
    listed = written if isinstance(written, list) else [] if written is None else [written]
    return tuple(token(one, "eos_token_id", file) for one in listed)


def pad_token(written: Any, file: str) -> int:
    return 0 if written is None else token(written, "pad_token_id", file)


def _rope(value: Mapping[str, Any], where: str) -> Rope:
    """Version 5 writes rope_parameters; version 4 rope_theta and rope_scaling."""
    written = value.get("rope_parameters") or value.get("rope_scaling") or {}
    if not isinstance(written, Mapping):
        raise UserError(f"{where} has the rope parameters {written!r}, expected an object")
    theta = checked(written.get("rope_theta") or value.get("rope_theta") or 10000.0, float, "rope_theta", where)
    kind = written.get("rope_type") or written.get("type") or "default"

    def number(key: str) -> float:
        if key not in written:
            raise UserError(f"{where} has rope scaling {kind!r} without {key}")
        return checked(written[key], float, key, where)

    match kind:
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, LinearScaling(number("factor")))
        case "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            factor, low, high, original = map(number, names)
            return Rope(theta, Llama3Scaling(factor, low, high, int(original)))
    raise UserError(f"{where} has rope type {kind!r}, which is not supported: known are default, linear, llama3")


def _fields(config: type, keys: Mapping[str, str], value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those fields of a configuration that the file states, each checked against the type of the field."""
    kinds = get_type_hints(config)
    return {field: checked(value[key], kinds[field], key, where) for field, key in keys.items()}


def checked(written: Any, kind: Any, key: str, where: str) -> Any:
    """A value of a file, if it is one of the type of our field."""
    if get_origin(kind) is UnionType:  # int | None
        return None if written is None else checked(written, get_args(kind)[0], key, where)
    if choices := get_args(kind):
        is_right, expected = written in choices, " or ".join(map(repr, choices))
    elif kind is bool:
        is_right, expected = isinstance(written, bool), "true or false"
    elif kind is int:
        most = MOST_LAYERS if key in ("num_hidden_layers", "depth") else MOST
        is_right, expected = _is_int(written) and 0 < written <= most, f"a whole number from 1 to {most:,}"
    else:
        is_right = (_is_int(written) or isinstance(written, float)) and 0 < written < math.inf
        expected = "a positive number"
    if not is_right:
        raise UserError(f"{where} has {key} {written!r}, expected {expected}")
    return float(written) if kind is float else written


def token(written: Any, key: str, file: str) -> int:
    if not _is_int(written) or not -(2**31) <= written < 2**31:
        raise UserError(f"{file} has {key} {written!r}, expected the number of a token")
    return written


def _is_int(written: Any) -> bool:
    return isinstance(written, int) and not isinstance(written, bool)


def choice(raw: Mapping[str, Any], where: str, key: str, *known: Any) -> Any:
    """The value of a key that may have few values. A file that leaves it out means the first."""
    value = raw.get(key, known[0])
    if value not in known:
        supported = " or ".join(map(str, known))
        raise UserError(f"{where} has {key} {value!r}, which is not supported: expected {supported}")
    return value


# --- writing --------------------------------------------------------------------------------------------------------


def hf_dict(config: VLMConfig, dtype: str) -> dict[str, Any]:
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
        "text_config": {**_language_dict(config), "torch_dtype": dtype},
        "vision_config": vision_dict(config.vision),
    }


def llava_dict(config: VLMConfig, dtype: str, aspect: str) -> dict[str, Any]:
    """config.json of the original layout. It has no keys for the vision tower's numbers: they go in a key of ours."""
    family = config.language.family
    (level,) = config.feature_levels
    return {
        **_language_dict(config),
        "architectures": [f"Llava{family.capitalize()}ForCausalLM"],
        "model_type": {hf: original for original, hf in ORIGINAL_TYPES.items()}[family],
        "pad_token_id": config.pad_token,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "linear" if config.projector.kind == "linear" else "mlp2x_gelu",
        "mm_hidden_size": config.vision.width,
        "mm_vision_select_layer": level - config.vision.depth - 1,
        "mm_vision_select_feature": "cls_patch" if config.keep_class_token else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": aspect,
        "tokenizer_model_max_length": 2048,
        "torch_dtype": dtype,
        "victor_jax": {"vision_config": vision_dict(config.vision), "image_token": config.image_token},
    }


def vision_dict(config: VisionConfig) -> dict[str, Any]:
    return {"model_type": "clip_vision_model"} | {key: getattr(config, field) for field, key in VISION_KEYS.items()}


def _language_dict(config: VLMConfig) -> dict[str, Any]:
    language, ends = config.language, list(config.end_tokens)
    return {
        "model_type": language.family,
        "architectures": [f"{language.family.capitalize()}ForCausalLM"],
        **{key: getattr(language, field) for field, key in LANGUAGE_KEYS.items()},
        "hidden_act": "silu",
        "rope_theta": language.rope.theta,
        "rope_scaling": _rope_scaling(language.rope),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    } | ({"sliding_window": language.sliding_window} if language.family == "mistral" else {})


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
