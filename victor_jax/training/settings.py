"""The border: a ConfigDict is read here, once, into small frozen dataclasses. Nothing below knows ConfigDict."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from victor_jax.data.settings import DataSettings
from victor_jax.errors import UserError


@dataclass(frozen=True)
class MeshSettings:
    data: int
    fsdp: int  # -1: as many devices as the rows of a part divide over
    tensor: int  # -1: all that data and fsdp leave


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float
    projector_learning_rate: float  # of projector and registers; 0: the same
    warmup_ratio: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float


@dataclass(frozen=True)
class LoraSettings:
    rank: int  # 0: no adapters
    alpha: float
    dropout: float


@dataclass(frozen=True)
class CheckpointSettings:
    every: int
    keep_last: int
    keep_every: int  # steps of which a checkpoint stays for good; 0: none


@dataclass(frozen=True)
class EvaluationSettings:
    every: int  # steps; 0: never
    rows: int  # held out of the data, drawn by the seed


@dataclass(frozen=True)
class BadStepSettings:
    action: str  # stop, skip
    spike_factor: float  # a loss above this many times the recent average is a bad step; 0: never
    most: int  # skipped steps before the run stops all the same


@dataclass(frozen=True)
class Settings:
    recipe: str
    size: str  # the architecture where init_from is "random", and for plans without weights
    init_from: str  # any folder that `load` takes; "random"
    vision_from: str  # a CLIP folder, where init_from is a language model or lacks the tower
    projector_from: str  # a mm_projector.bin
    compression: str
    trainable: tuple[str, ...]  # of projector, compression (the method's own parameters), language
    total_steps: int  # 0: as many as `epochs` take
    epochs: int
    batch_size: int
    micro_batches: int  # parts of the batch, one after the other, each with a length of its own
    seed: int
    dtype: str  # of the computation and of what is frozen
    param_dtype: str  # of what is trained
    remat: str
    loss_chunk: int
    attention: str
    log_every: int
    wandb: bool
    mesh: MeshSettings
    data: DataSettings
    optimizer: OptimizerConfig
    lora: LoraSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings
    bad_step: BadStepSettings


CHOICES = {
    "data.template": ("plain", "vicuna_v1", "llama3", "mistral", "qwen2"),
    "data.aspect": ("square", "pad"),
    "dtype": ("bfloat16", "float32"),
    "param_dtype": ("bfloat16", "float32"),
    "remat": ("none", "full", "dots"),
    "attention": ("xla", "cudnn", "splash"),
    "bad_step.action": ("stop", "skip"),
}
POSITIVE = (
    "epochs",
    "batch_size",
    "micro_batches",
    "loss_chunk",
    "log_every",
    "mesh.data",
    "data.max_length",
    "optimizer.clip_norm",
    "checkpoint.every",
)
NOT_NEGATIVE = (
    "total_steps",
    "seed",
    "data.workers",
    "data.max_bad_rows",
    "optimizer.learning_rate",
    "optimizer.projector_learning_rate",
    "optimizer.weight_decay",
    "lora.rank",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "evaluation.every",
    "evaluation.rows",
    "bad_step.spike_factor",
    "bad_step.most",
)
SHARES = ("optimizer.warmup_ratio", "optimizer.b1", "optimizer.b2", "lora.dropout")  # from 0 to below 1
REST_OF_MESH = ("mesh.fsdp", "mesh.tensor")  # -1, or a number of devices
PARTS = ("projector", "compression", "language")
TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple[str, ...]: "a list of texts",
}


def read(config: Mapping[str, Any]) -> Settings:
    """A ConfigDict (or any nested mapping) -> settings, or one error about the first thing that is wrong."""
    settings = _read(Settings, config, "")
    for key, allowed in CHOICES.items():
        value = _at(settings, key)
        if value not in allowed:
            raise UserError(f"config.{key}={value!r} must be one of {', '.join(allowed)}")
    limits = (
        (POSITIVE, "above 0", lambda value: value > 0),
        (NOT_NEGATIVE, "at least 0", lambda value: value >= 0),
        (SHARES, "from 0 to below 1", lambda value: 0 <= value < 1),
        (REST_OF_MESH, "a number of devices, or -1 for the rest", lambda value: value > 0 or value == -1),
    )
    for keys, what, is_allowed in limits:
        for key in keys:
            if not is_allowed(_at(settings, key)):
                raise UserError(f"config.{key}={_at(settings, key)} must be {what}")
    if settings.evaluation.every and not settings.evaluation.rows:
        raise UserError(f"config.evaluation.every={settings.evaluation.every} needs config.evaluation.rows to hold out")
    if unknown := [part for part in settings.trainable if part not in PARTS]:
        raise UserError(f"config.trainable names {unknown[0]!r}: known are {', '.join(PARTS)}")
    if settings.batch_size % settings.micro_batches:
        raise UserError(
            f"config.batch_size={settings.batch_size} does not divide into {settings.micro_batches} micro_batches"
        )
    return settings


def nearest_key(key: str, known: list[str]) -> str:
    """`: did you mean …` for a misspelt key, or the beginning of the list of known ones."""
    close = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(
        key.rsplit(".", 1)[-1], known, n=1, cutoff=0.4
    )
    return f": did you mean {close[0]}?" if close else f": known are {', '.join(known)}"


def _read(kind: Any, config: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key in config:
        if key not in known:
            raise UserError(f"unknown config key config.{prefix}{key}{nearest_key(key, known)}")
    values = {}
    for name in known:
        if name not in config:
            raise UserError(f"the config lacks config.{prefix}{name}")
        value, hint = config[name], hints[name]
        values[name] = (
            _read(hint, value, f"{prefix}{name}.") if is_dataclass(hint) else _typed(value, hint, prefix + name)
        )
    return kind(**values)


def _typed(value: Any, hint: Any, key: str) -> Any:
    if get_origin(hint) is tuple:
        wanted = get_args(hint)[0]
        if isinstance(value, tuple | list) and all(isinstance(item, wanted) for item in value):
            return tuple(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"config.{key}={value!r} must be {TYPES.get(hint, hint)}")


def _at(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
