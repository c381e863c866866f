"""The original LLaVA layout (liuhaotian): the language model's own folder, with a projector and perhaps a vision
tower in it; and the separate folders that a training starts from."""

import warnings
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.models.config import ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.folder import read_folder, read_json
from victor_jax.weights.hf_config import (
    CLIP_DEFAULTS,
    LANGUAGE_DEFAULTS,
    ORIGINAL_TYPES,
    end_tokens,
    feature_levels,
    language_config,
    vision_config,
)
from victor_jax.weights.tables import PROJECTOR_FILE, Table, by_our_names, read_projector


def open_original(folder: Path, raw: dict[str, Any], vision: Path | None, projector: Path | None) -> Checkpoint:
    file = str(folder / "config.json")
    language = language_config(raw, file, ORIGINAL_TYPES.get(raw.get("model_type", "llava")))
    table, skipped = by_our_names(read_folder(folder), str(folder), tied_head=language.tied_embeddings)
    if not any(name.startswith("projector/") for name in table):
        table |= read_projector(projector or _projector_beside(folder))
    elif projector:
        raise UserError(f"{folder} brings its own projector: leave projector={projector} out")
    if any(name.startswith("vision/") for name in table):
        if vision:
            raise UserError(f"{folder} brings its own vision tower: leave vision={vision} out")
        tower = _tower_within(folder, raw, table)
    else:
        tower, tensors, more = open_clip(vision or _tower_beside(folder, raw))
        table |= tensors
        skipped += more
    config = VLMConfig(
        vision=tower,
        projector=_projector_config(raw, file, table),
        language=language,
        feature_levels=feature_levels(raw.get("mm_vision_select_layer", -2), tower.depth, file),
        keep_class_token=_keeps_class_token(raw, file),
        # The original has no image token of its own; like Hugging Face's converter we take the next free id.
        image_token=raw.get("victor_jax", {}).get("image_token", language.vocabulary),
        pad_token=raw.get("pad_token_id") or 0,
        end_tokens=_end_tokens(raw, language.family),
    )
    return Checkpoint("llava", folder, config, table, skipped=skipped)


def open_language_model(
    folder: Path, raw: dict[str, Any], vision: Path | None, projector: Path | None, seed: int
) -> Checkpoint:
    """A language model and a CLIP folder: where a training starts. Without a projector a fresh one is drawn."""
    if vision is None:
        raise UserError(f"{folder} is a language model alone: give the folder of a CLIP vision tower (vision=…)")
    file = str(folder / "config.json")
    language = language_config(raw, file)
    table, skipped = by_our_names(read_folder(folder), str(folder), tied_head=language.tied_embeddings)
    tower, tensors, more = open_clip(vision)
    table |= tensors
    if projector:
        table |= read_projector(projector)
    linear = projector is not None and "projector/linear_2/kernel" not in table
    config = VLMConfig(
        vision=tower,
        projector=ProjectorConfig("linear" if linear else "mlp", bias=True),
        language=language,
        feature_levels=feature_levels(-2, tower.depth, file),
        keep_class_token=False,
        image_token=language.vocabulary,
        pad_token=raw.get("pad_token_id") or 0,
        end_tokens=_end_tokens(raw, language.family),
    )
    if projector is None:
        warnings.warn(f"the projector is untrained: drawn from seed {seed}", stacklevel=3)
        table |= fresh.projector(config, seed)
    return Checkpoint("language model + CLIP", folder, config, table, skipped=skipped + more)


def open_clip(folder: Path) -> tuple[VisionConfig, Table, tuple[str, ...]]:
    """A folder with a CLIP vision tower, or with a whole CLIP, whose text half is skipped."""
    config = _vision_config_in(folder)
    table, skipped = by_our_names(read_folder(folder), str(folder), clip_folder=True)
    return config, table, skipped


def _vision_config_in(folder: Path) -> VisionConfig:
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("model_type") not in ("clip", "clip_vision_model"):
        raise UserError(f"{file} has model_type {raw.get('model_type')!r}, expected a CLIP vision tower")
    return vision_config(raw.get("vision_config", raw), str(file))


def _projector_beside(folder: Path) -> Path:
    if (file := folder / PROJECTOR_FILE).exists():
        return file
    raise UserError(
        f"{folder} holds no projector and no {PROJECTOR_FILE} lies in it: give the file of one (projector=…)"
    )


def _named_tower(folder: Path, raw: dict[str, Any]) -> Path | None:
    """The folder of the vision tower that config.json names, where it is at hand."""
    if not (named := raw.get("mm_vision_tower")):
        return None
    return next((place for place in (Path(named), folder / named) if (place / "config.json").exists()), None)


def _tower_beside(folder: Path, raw: dict[str, Any]) -> Path:
    if place := _named_tower(folder, raw):
        return place
    named = raw.get("mm_vision_tower") or "mm_vision_tower"
    raise UserError(
        f"{folder} holds no vision tower and {named} is not a folder here: give the folder of a CLIP vision tower "
        "(vision=…)"
    )


def _tower_within(folder: Path, raw: dict[str, Any], table: Table) -> VisionConfig:
    """The layout does not describe the tower it carries: a key of ours does, a folder, or OpenAI's conventions."""
    if described := raw.get("victor_jax", {}).get("vision_config"):
        return vision_config(described, str(folder / "config.json"))
    if place := _named_tower(folder, raw):
        return _vision_config_in(place)
    named = str(raw.get("mm_vision_tower"))
    if "openai/clip-vit" not in named:
        raise UserError(
            f"{folder / 'config.json'} names the vision tower {named!r}, whose numbers are not known here: write "
            "the path of its folder as mm_vision_tower"
        )
    try:
        patch_area, width = table["vision/patch_embedding/kernel"].shape
        positions = table["vision/position_embedding"].shape[0]
        mlp_width = table["vision/layers/0/mlp/up/kernel"].shape[1]
    except KeyError as missing:
        raise UserError(f"{folder} lacks {missing.args[0]}: its vision tower is incomplete") from None
    patch = round((patch_area / 3) ** 0.5)
    return VisionConfig(
        width=width,
        mlp_width=mlp_width,
        depth=len({name.split("/")[2] for name in table if name.startswith("vision/layers/")}),
        heads=width // 64,  # every OpenAI CLIP has heads of 64
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        activation="quick_gelu",
        norm_eps=CLIP_DEFAULTS["layer_norm_eps"],
    )


def _projector_config(raw: dict[str, Any], file: str, table: Table) -> ProjectorConfig:
    kind = raw.get("mm_projector_type", "linear")  # the first LLaVA did not write it
    if kind not in ("linear", "mlp2x_gelu"):
        raise UserError(f"{file} has mm_projector_type {kind!r}, which is not supported: known are linear, mlp2x_gelu")
    return ProjectorConfig("linear" if kind == "linear" else "mlp", "projector/linear_1/bias" in table)


def _keeps_class_token(raw: dict[str, Any], file: str) -> bool:
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise UserError(f"{file} has mm_vision_select_feature {feature!r}, expected patch or cls_patch")
    return feature == "cls_patch"


def _end_tokens(raw: dict[str, Any], family: str) -> tuple[int, ...]:
    return end_tokens(raw.get("eos_token_id", LANGUAGE_DEFAULTS[family]["eos_token_id"]))
