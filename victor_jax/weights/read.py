"""Opens a checkpoint folder of any known format, recognised by what is in it, never by its name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.weights import orbax_format
from victor_jax.weights.checkpoint import Checkpoint, check, prompt_from_json
from victor_jax.weights.folder import read_folder, read_json, read_safetensors
from victor_jax.weights.hf_config import LANGUAGE_DEFAULTS, ORIGINAL_TYPES, vlm_config
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.original import open_language_model, open_original
from victor_jax.weights.tables import by_our_names
from victor_jax.weights.tensors import Tensor

SIDE_CONFIG = "victor.json"  # beside a layout of others: the compression and the prompt that it was trained with
SIDE_WEIGHTS = "victor.safetensors"  # and its registers


def open_checkpoint(
    path: str | Path, vision: str | Path | None = None, projector: str | Path | None = None, seed: int = 0
) -> Checkpoint:
    """Any known folder -> a checkpoint whose every tensor is accounted for; no weights are read yet.

    `vision` is a CLIP folder for a checkpoint without the tower, `projector` a mm_projector.bin for one without
    a projector. A language model with a vision tower and no projector gets one drawn from `seed`.
    """
    folder = Path(path)
    raw = read_json(folder / "config.json")
    tower = Path(vision) if vision else None
    projector_file = Path(projector) if projector else None
    model_type = raw.get("model_type")
    if model_type == orbax_format.MODEL_TYPE or (model_type == "llava" and "text_config" in raw):
        for name, value in (("vision tower", vision), ("projector", projector)):
            if value:
                raise UserError(f"{folder} brings its own {name}: leave {value} out")
        checkpoint = _open_ours(folder, raw) if model_type == orbax_format.MODEL_TYPE else _open_hf(folder, raw)
    elif model_type in ORIGINAL_TYPES or "mm_vision_tower" in raw:
        checkpoint = _with_its_aspect(open_original(folder, raw, tower, projector_file), raw)
    elif model_type in LANGUAGE_DEFAULTS:
        checkpoint = open_language_model(folder, raw, tower, projector_file, seed)
    elif model_type in ("clip", "clip_vision_model"):
        raise UserError(f"{folder} is a vision tower alone: give it as vision=… beside a language model")
    else:
        known = dict.fromkeys([*ORIGINAL_TYPES, *LANGUAGE_DEFAULTS, orbax_format.MODEL_TYPE])
        raise UserError(
            f"{folder / 'config.json'} has the unknown model_type {model_type!r}: known are {', '.join(known)}"
        )
    checkpoint = _with_side_files(checkpoint)
    check(checkpoint, parse(checkpoint.compression, checkpoint.config), str(folder))
    return checkpoint


def _open_ours(folder: Path, raw: dict[str, Any]) -> Checkpoint:
    config, compression, prompt = orbax_format.config_from_json(raw, folder / "config.json")
    return Checkpoint("orbax", folder, config, own_names(orbax_format.read_params(folder)), compression, prompt=prompt)


def own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Registers stood outside `compression/` in checkpoints of version 0.1."""
    return {REGISTERS if name == "registers" else name: tensor for name, tensor in tensors.items()}


def _with_its_aspect(checkpoint: Checkpoint, raw: dict[str, Any]) -> Checkpoint:
    """The one part of the prompt that the original layout writes."""
    aspect = raw.get("image_aspect_ratio")
    if aspect not in ("square", "pad"):  # another preparation, or none is named
        return checkpoint
    return replace(checkpoint, prompt=replace(checkpoint.prompt, aspect=aspect))


def _open_hf(folder: Path, raw: dict[str, Any]) -> Checkpoint:
    generation = folder / "generation_config.json"
    config = vlm_config(raw, str(folder / "config.json"), read_json(generation) if generation.exists() else {})
    table, skipped = by_our_names(read_folder(folder), str(folder), tied_head=config.language.tied_embeddings)
    return Checkpoint("hf", folder, config, table, skipped=skipped)


def _with_side_files(checkpoint: Checkpoint) -> Checkpoint:
    file = checkpoint.folder / SIDE_CONFIG
    if not file.exists():
        return checkpoint
    written = read_json(file)
    compression = written.get("compression")
    if not isinstance(compression, str):
        raise UserError(f"{file} names no compression: expected a text such as victor:registers=8,layer=3")
    tensors = dict(checkpoint.tensors)
    if (weights := checkpoint.folder / SIDE_WEIGHTS).exists():
        tensors |= own_names(read_safetensors(weights))
    prompt = prompt_from_json(written["prompt"], file) if "prompt" in written else checkpoint.prompt
    return replace(checkpoint, tensors=tensors, compression=compression, prompt=prompt)
