"""How a model was taught to be asked: part of a checkpoint, carried out by `data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from victor_jax.errors import UserError

Aspect = Literal["square", "pad"]
KNOWN = {"template": ("plain", "vicuna_v1", "llama3", "mistral", "qwen2"), "aspect": get_args(Aspect)}


@dataclass(frozen=True)
class Prompt:
    template: str = "vicuna_v1"
    aspect: str = "pad"  # how a picture becomes a square


def prompt_from_json(written: Any, file: Path) -> Prompt:
    """The prompt as `file` describes it; what it leaves out is the default."""
    if not isinstance(written, dict) or not written.keys() <= KNOWN.keys():
        raise UserError(f"{file} describes the prompt as {written!r}: expected the keys {' and '.join(KNOWN)}")
    for key, value in written.items():
        if value not in KNOWN[key]:
            raise UserError(f"{file} has the prompt {key} {value!r}: known are {', '.join(KNOWN[key])}")
    return Prompt(**written)
