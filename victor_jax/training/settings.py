"""The settings of a run, each declared once: its type, its limits, its meaning. `read` is the border to ConfigDict."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from victor_jax.data.settings import DataSettings
from victor_jax.errors import UserError
from victor_jax.limits import POSITIVE, Count, Devices, Number, Positive, Share

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class MeshSettings:
    data: Positive
    fsdp: Devices  # -1: as many devices as the rows of a part divide over
    tensor: Devices  # -1: all that data and fsdp leave


@dataclass(frozen=True)
class OptimizerSettings:
    learning_rate: Annotated[float, POSITIVE]
    projector_learning_rate: Number  # of the projector and of the method's own parameters; 0: the same
    warmup_ratio: Share
    cosine: bool  # after the warmup half a cosine to 0; False: the rate stays, for a model that is trained on
    weight_decay: Number
    b1: Share
    b2: Share
    eps: Annotated[float, POSITIVE]
    clip_norm: Annotated[float, POSITIVE]
    mu_dtype: Dtype  # of the first moment as it is kept; bfloat16 halves its memory


@dataclass(frozen=True)
class LoraSettings:
    rank: Count  # 0: no adapters
    alpha: float
    dropout: Share


@dataclass(frozen=True)
class CheckpointSettings:
    every: Positive
    keep_last: Count
    keep_every: Count  # steps of which a checkpoint is kept for good; 0: none


@dataclass(frozen=True)
class EvaluationSettings:
    every: Count  # steps; 0: never
    rows: Count  # held out of the data, drawn by the seed
    benchmarks: tuple[str, ...]  # as eval.py names them
    data: str  # the folder of their folders
    questions: Count  # so many of each benchmark, the first; 0: all


@dataclass(frozen=True)
class BadStepSettings:
    action: Literal["stop", "skip"]
    spike_factor: Number  # a loss above this many times the recent average is a bad step; 0: never
    most: Count  # skipped steps before the run stops all the same


@dataclass(frozen=True)
class ProfileSettings:
    first: Count  # the first step that is traced
    steps: Count  # how many are; 0: none


@dataclass(frozen=True)
class Settings:
    recipe: Literal["llava", "paper"]
    size: Literal[
        "7b", "13b", "small"
    ]  # of models.sizes: the architecture where init_from is "random", and for plans without weights
    init_from: str  # any folder that `load` takes; "random"
    vision_from: str  # a CLIP folder, where init_from is a language model or lacks the tower
    projector_from: str  # a mm_projector.bin
    compression: str
    trainable: tuple[Literal["projector", "compression", "language"], ...]  # compression: the method's own parameters
    total_steps: Count  # 0: as many as `epochs` take
    epochs: Positive
    batch_size: Positive
    micro_batches: Count  # parts of the batch, one after the other; 0: as few as leave a device 16 rows of a part
    seed: Count
    dtype: Dtype  # of the computation and of what is frozen
    param_dtype: Dtype  # of what is trained
    remat: Literal["none", "full", "dots"]
    loss_chunk: Positive
    attention: Literal["auto", "xla", "cudnn", "splash"]
    log_every: Positive
    wandb: bool
    mesh: MeshSettings
    data: DataSettings
    optimizer: OptimizerSettings
    lora: LoraSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings
    bad_step: BadStepSettings
    profile: ProfileSettings


TYPES = {str: "text", int: "a whole number", float: "a number", bool: "True or False", tuple: "a list of texts"}


def read(config: Mapping[str, Any]) -> Settings:
    """A ConfigDict (or any nested mapping) -> settings, or one error about the first thing that is wrong."""
    settings: Settings = _section(Settings, config, "")
    evaluation = settings.evaluation
    if evaluation.every and not (evaluation.rows or evaluation.benchmarks):
        raise UserError(
            f"config.evaluation.every={evaluation.every} needs config.evaluation.rows to hold out, or benchmarks to ask"
        )
    if evaluation.benchmarks and not (evaluation.every and evaluation.data):
        raise UserError(
            "config.evaluation.benchmarks needs config.evaluation.every and config.evaluation.data, a folder"
        )
    if settings.micro_batches and settings.batch_size % settings.micro_batches:
        raise UserError(
            f"config.batch_size={settings.batch_size} does not divide into {settings.micro_batches} micro_batches"
        )
    return settings


def _section(kind: Any, config: Any, prefix: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind)]
    for key in config:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1) or known
            raise UserError(f"unknown config key config.{prefix}{key}: did you mean {' or '.join(nearest)}?")
    values = {}
    for name, hint in hints.items():
        if name not in config:
            raise UserError(f"the config lacks config.{prefix}{name}")
        check = _section if is_dataclass(hint) else _value
        values[name] = check(hint, config[name], f"{prefix}{name}" + "." * is_dataclass(hint))
    return kind(**values)


def _value(hint: Any, value: Any, key: str) -> Any:
    if get_origin(hint) is Annotated:
        plain, limit = get_args(hint)
        value = _value(plain, value, key)
        if not limit.holds(value):
            raise UserError(f"config.{key}={value!r} must be {limit.words}")
        return value
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"config.{key}={value!r} must be one of {', '.join(get_args(hint))}")
        return value
    kind: Any = get_origin(hint) or hint
    # A whole number passes for a float, a list for a tuple; True and False pass for nothing else.
    allowed: tuple[type, ...] = {float: (int, float), tuple: (tuple, list)}.get(kind, (kind,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"config.{key}={value!r} must be {TYPES[kind]}")
    value = kind(value)
    return tuple(_value(get_args(hint)[0], item, key) for item in value) if kind is tuple else value
