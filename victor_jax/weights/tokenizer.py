"""The tokenizer of a checkpoint folder, whatever its layout."""

from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.weights.folder import read_json
from victor_jax.weights.orbax_format import MODEL_TYPE

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedConfig

    # transformers asks config.json for the kind of tokenizer and wonders at the name of our format, which says none.
    kind = {"config": PreTrainedConfig()} if _is_ours(folder) else {}
    try:
        return AutoTokenizer.from_pretrained(folder, **kind)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer could be read from {folder} ({str(error).splitlines()[0]})") from None


def _is_ours(folder: Path) -> bool:
    file = folder / "config.json"
    return file.exists() and read_json(file).get("model_type") == MODEL_TYPE
