"""Opens a checkpoint of any known format, recognised by what is in its folder, never by the folder's name."""

import contextlib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError, join_names
from victor_jax.limits import check_kind
from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.prompt import Prompt, prompt_from_json
from victor_jax.weights import fresh, orbax_format
from victor_jax.weights.checkpoint import Checkpoint, check
from victor_jax.weights.folder import SIDE_CONFIG, SIDE_WEIGHTS, read_folder, read_json, read_safetensors
from victor_jax.weights.hf_config import (
    CLIP_DEFAULT,
    LANGUAGE_DEFAULTS,
    ORIGINAL_TYPES,
    choice,
    end_tokens,
    feature_levels,
    language_config,
    pad_token,
    token,
    vision_config,
    vlm_config,
    whole,
)
from victor_jax.weights.names import HEAD, OWN, PATCHES, Table, current_name, from_torch, with_key
from victor_jax.weights.tensors import equal, transposed
from victor_jax.weights.torch_files import read_torch_file

PROJECTOR_FILE = "mm_projector.bin"
CLIP_TYPES = ("clip", "clip_vision_model")


def open_checkpoint(
    path: str | Path, vision: str | Path | None = None, projector: str | Path | None = None, seed: int = 0
) -> Checkpoint:
    """Any known folder, or `org/name[@revision]` on the Hugging Face Hub -> a checkpoint whose every tensor is
    accounted for; no weights are read yet.

    `vision` is a CLIP folder for a checkpoint without the tower, `projector` a mm_projector.bin for one without
    a projector. A language model with a vision tower and no projector gets one drawn from `seed`.
    """
    check_kind("path", path, (str, Path), "the path of a folder")
    check_kind("vision", vision, (str, Path, NoneType), "the path of a folder")
    check_kind("projector", projector, (str, Path, NoneType), "the path of a file")
    folder = _folder(path)
    raw = read_json(folder / "config.json")
    tower = _folder(vision) if vision else None
    projector_file = Path(projector) if projector else None
    model_type = raw.get("model_type")
    if not isinstance(model_type, str | None):
        raise UserError(f"{folder / 'config.json'} has model_type {model_type!r}, expected a text")
    if model_type == orbax_format.MODEL_TYPE or (model_type == "llava" and "text_config" in raw):
        checkpoint = _open_orbax(folder, raw) if model_type == orbax_format.MODEL_TYPE else _open_hf(folder, raw)
        _own_parts(folder, checkpoint.tensors, vision, projector)
    elif model_type in ORIGINAL_TYPES or model_type in LANGUAGE_DEFAULTS or "mm_vision_tower" in raw:
        checkpoint = _open_parts(folder, raw, tower, projector_file, seed)
    elif model_type in CLIP_TYPES:
        raise UserError(f"{folder} is a vision tower alone: give it as vision=… beside a language model")
    else:
        known = dict.fromkeys([*ORIGINAL_TYPES, *LANGUAGE_DEFAULTS, orbax_format.MODEL_TYPE])
        raise UserError(
            f"{folder / 'config.json'} has the unknown model_type {model_type!r}: known are {', '.join(known)}"
        )
    checkpoint = _with_side_files(checkpoint)
    method = parse(checkpoint.compression, checkpoint.config)
    trained = "" if checkpoint.compression == "full" else f", trained with {checkpoint.compression},"
    check(checkpoint, method, f"{folder}{trained}")
    return checkpoint


def _folder(path: str | Path) -> Path:
    """A folder that exists wins over a repository of its name."""
    if os.path.exists(path):  # also asks of what can be no path
        return Path(path)
    from victor_jax.weights.hub import local_folder  # a quarter of a second that only the Hub's users pay

    return local_folder(path)


def _own_parts(folder: Path, tensors: Table, vision: str | Path | None, projector: str | Path | None) -> set[str]:
    """The parts that the folder brings along: none of them may be given beside it."""
    held = {name.split("/")[0] for name in tensors}
    for part, given in (("vision", vision), ("projector", projector)):
        if given and part in held:
            raise UserError(f"{folder} brings its own {part}: leave {part}={given} out")
    return held


# --- formats that describe the whole model --------------------------------------------------------------------------


def _open_orbax(folder: Path, raw: dict[str, Any]) -> Checkpoint:
    config, compression, prompt = orbax_format.config_from_dict(raw, folder / "config.json")
    tensors = {current_name(name): tensor for name, tensor in orbax_format.read_params(folder).items()}
    return Checkpoint("orbax", folder, config, tensors, compression, prompt=prompt)


def _open_hf(folder: Path, raw: dict[str, Any]) -> Checkpoint:
    generation = folder / "generation_config.json"
    config = vlm_config(raw, str(folder / "config.json"), read_json(generation) if generation.exists() else {})
    table, skipped = from_torch(read_folder(folder), str(folder))
    language, copies = _settle_head(config.language, table, folder)
    return Checkpoint("hf", folder, replace(config, language=language), table, skipped=skipped + copies)


def _settle_head(config: LanguageConfig, table: Table, folder: Path) -> tuple[LanguageConfig, tuple[str, ...]]:
    """Where the head is tied to the embedding, a file may still hold one. A copy of the embedding leaves `table` and is
    named; another is used, as transformers 5 does."""
    head, embedding = table.get(HEAD), table.get("language/embedding")
    if not config.tied_embeddings or head is None or embedding is None:
        return config, ()
    if head.shape == embedding.shape[::-1] and equal(transposed(head), embedding):
        del table[HEAD]
        return config, (HEAD,)
    warnings.warn(
        f"{folder / 'config.json'} ties the head to the embedding, but its weights hold another head: that one is used",
        stacklevel=4,
    )
    return replace(config, tied_embeddings=False), ()


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
        own = {current_name(name): tensor for name, tensor in read_safetensors(weights).items()}
        if others := [name for name in own if not name.startswith(OWN)]:
            raise UserError(f"{weights} holds tensors that are no parameters of a compression: {join_names(others)}")
        tensors |= own
    prompt = prompt_from_json(written["prompt"], file) if "prompt" in written else checkpoint.prompt
    return replace(checkpoint, tensors=tensors, compression=compression, prompt=prompt)


# --- the original LLaVA, and the parts that a training starts from ---------------------------------------------------


def _open_parts(
    folder: Path, raw: dict[str, Any], vision: Path | None, projector: Path | None, seed: int
) -> Checkpoint:
    """A language model's folder. The original LLaVA has a projector in it or beside it, and perhaps the tower.

    A language model alone takes its vision tower from `vision`; a projector that is given nowhere is drawn from `seed`.
    """
    file = str(folder / "config.json")
    for key, kind, expected in (("mm_vision_tower", str, "a text"), ("victor_jax", dict, "an object")):
        if not isinstance(raw.get(key), kind | None):
            raise UserError(f"{file} has {key} {raw[key]!r}, expected {expected}")
    ours = raw.get("victor_jax") or {}  # the keys that we add
    is_llava = raw.get("model_type") in ORIGINAL_TYPES or "mm_vision_tower" in raw
    language = language_config(raw, file, ORIGINAL_TYPES.get(raw.get("model_type", "llava")))
    table, skipped = from_torch(read_folder(folder), str(folder))
    language, copies = _settle_head(language, table, folder)
    skipped += copies
    held = _own_parts(folder, table, vision, projector)
    if is_llava and not projector and "projector" not in held:
        projector = folder / PROJECTOR_FILE
        if not projector.exists():
            raise UserError(
                f"{folder} holds no projector and no {PROJECTOR_FILE} is in it: give the file of one (projector=…)"
            )
    if projector:
        table |= _read_projector(projector)
    if "vision" in held:
        tower = _tower_within(folder, raw, ours, table)
    else:
        place = vision or _tower_beside(folder, raw)
        tower = _vision_config_in(place)
        tensors, more = from_torch(read_folder(place), str(place), clip_folder=True)
        table |= tensors
        skipped += more
    described = VLMConfig(
        vision=tower,
        projector=_projector_config(raw, file, table),
        language=language,
        feature_levels=feature_levels(raw.get("mm_vision_select_layer", -2), tower.depth, file),
        keep_class_token=choice(raw, file, "mm_vision_select_feature", "patch", "cls_patch") == "cls_patch",
        # The original has no image token of its own; like Hugging Face's converter we take the next free id.
        image_token=token(ours.get("image_token", language.vocabulary), "image_token", file),
        pad_token=pad_token(raw.get("pad_token_id"), file),
        end_tokens=end_tokens(raw, language.family, file),
    )
    config = whole(described, file)
    if not projector and "projector" not in held:
        warnings.warn(f"the projector is untrained: drawn from seed {seed}", stacklevel=3)
        drawn = fresh.checkpoint(config, seed).tensors
        table |= {name: tensor for name, tensor in drawn.items() if name.startswith("projector/")}
    # The one part of the prompt that this layout states; some name a preparation that we do not know.
    aspect = raw.get("image_aspect_ratio")
    prompt = Prompt(aspect=aspect) if aspect in ("square", "pad") else Prompt()
    return Checkpoint("llava" if is_llava else "language model + CLIP", folder, config, table, "full", skipped, prompt)


def _vision_config_in(folder: Path) -> VisionConfig:
    """Of a CLIP vision tower, or of a whole CLIP, whose text half is skipped."""
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("model_type") not in CLIP_TYPES:
        raise UserError(f"{file} has model_type {raw.get('model_type')!r}, expected a CLIP vision tower")
    return vision_config(raw.get("vision_config", raw), str(file))


def _read_projector(path: Path) -> Table:
    """A mm_projector.bin, as the original's first training stage writes it."""
    table, _ = from_torch(read_torch_file(path), str(path))
    others = [f"{name} ({tensor.key})" for name, tensor in table.items() if not name.startswith("projector/")]
    if others or not table:
        raise UserError(f"{path} is not a projector: it holds {join_names(others) or 'nothing'}")
    return table


def _named_tower(folder: Path, raw: dict[str, Any]) -> Path | None:
    """The folder of the vision tower that config.json names, if it is here."""
    if not (named := raw.get("mm_vision_tower")):
        return None
    return next((place for place in (Path(named), folder / named) if (place / "config.json").exists()), None)


def _tower_beside(folder: Path, raw: dict[str, Any]) -> Path:
    if not (named := raw.get("mm_vision_tower")):
        raise UserError(f"{folder} is a language model alone: give the folder of a CLIP vision tower (vision=…)")
    if place := _named_tower(folder, raw):
        return place
    with contextlib.suppress(UserError):  # the Hub does not have it, or cannot be reached
        if (place := _folder(named)).exists():
            return place
    raise UserError(
        f"{folder} holds no vision tower and {named} is not a folder here, nor to be had from the Hugging Face Hub: "
        "give the folder of a CLIP vision tower (vision=…)"
    )


def _tower_within(folder: Path, raw: dict[str, Any], ours: dict[str, Any], table: Table) -> VisionConfig:
    """The layout does not describe the tower it carries: a key of ours does, a folder, or OpenAI's conventions."""
    if isinstance(described := ours.get("vision_config"), dict):
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
        patch_area, width = table[PATCHES].shape
        positions = table["vision/position_embedding"].shape[0]
        mlp_width = table["vision/layers/0/mlp/up/kernel"].shape[1]
    except KeyError as missing:
        named = with_key(missing.args[0], table, "llava")
        raise UserError(f"{folder} lacks {named}: its vision tower is incomplete") from None
    patch = round((patch_area / 3) ** 0.5)
    return replace(
        CLIP_DEFAULT,
        width=width,
        mlp_width=mlp_width,
        depth=len({name.split("/")[2] for name in table if name.startswith("vision/layers/")}),
        heads=width // 64,  # every OpenAI CLIP has heads of 64
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
    )


def _projector_config(raw: dict[str, Any], file: str, table: Table) -> ProjectorConfig:
    """The first LLaVA did not write the kind, and a language model does not: then it shows in the tensors."""
    is_drawn = "projector/linear_1/kernel" not in table
    kinds = ("mlp2x_gelu", "linear") if is_drawn or "projector/linear_2/kernel" in table else ("linear", "mlp2x_gelu")
    kind = choice(raw, file, "mm_projector_type", *kinds)
    return ProjectorConfig("linear" if kind == "linear" else "mlp", is_drawn or "projector/linear_1/bias" in table)
