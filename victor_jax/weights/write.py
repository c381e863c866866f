"""Writes a checkpoint in one of three formats. The folder appears under its name only when it is whole."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from victor_jax.compression.plan import round_up
from victor_jax.errors import UserError
from victor_jax.files import new_folder
from victor_jax.prompt import Prompt
from victor_jax.weights import orbax_format
from victor_jax.weights.card import keep_base_readme, write_readme
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.folder import SIDE_CONFIG, SIDE_WEIGHTS, write_file, write_json, write_shards
from victor_jax.weights.hf_config import hf_dict, llava_dict
from victor_jax.weights.names import HEAD, to_torch
from victor_jax.weights.tensors import Index, Tensor, transposed
from victor_jax.weights.tokenizer import IMAGE_TOKEN, tokenizer_with_image_token, write_processor

FORMATS = ("hf", "llava", "orbax")
VOCABULARY_MULTIPLE = 64  # Hugging Face's converter pads the embedding to this

# Files beside the weights that belong to the tokenizer and the image processor: taken along as they are.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*processor_config.json",
    "chat_template*",
    "generation_config.json",
)

Progress = Callable[[int], Any]  # called with the bytes that have been written


def write_checkpoint(
    checkpoint: Checkpoint,
    destination: str | Path,
    to: str,
    progress: Progress = lambda _: None,
    name: str | None = None,  # under which it will be known; by default the folder's
) -> None:
    """A README goes with a name, and with a compression that other readers of the layout do not know."""
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r}: known are {', '.join(FORMATS)}")
    tokenizer = None
    if to == "hf":
        if checkpoint.config.image_token >= checkpoint.config.language.vocabulary:
            tokenizer = tokenizer_with_image_token(checkpoint.folder)
        checkpoint = _for_hugging_face(checkpoint, tokenizer)
    with new_folder(Path(destination)) as folder:
        _copy_companions(checkpoint.folder, folder)
        keep_base_readme(checkpoint.folder, folder)
        if name or (to != "orbax" and checkpoint.compression != "full"):
            write_readme(folder, checkpoint, to, name or Path(destination).name)
        if tokenizer is not None:
            write_processor(folder, tokenizer, checkpoint.config, checkpoint.prompt.aspect)
        if to == "orbax":
            described = orbax_format.config_dict(checkpoint.config, checkpoint.compression, checkpoint.prompt)
            _write_params(folder, checkpoint.tensors, progress)
        else:
            described = _write_layout(checkpoint, folder, to, progress)
        write_json(folder / "config.json", described)


def _write_params(folder: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Orbax writes in threads of its own. An interrupt waits for the tensor in flight and lets none follow, so that
    nothing is written after the cleaning up."""
    interrupted = threading.Event()

    def step(written: int) -> None:
        if interrupted.is_set():
            raise InterruptedError
        progress(written)

    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(orbax_format.write_params, folder, tensors, step).result()
        except BaseException as error:
            interrupted.set()
            if isinstance(error, ValueError) and not isinstance(error, UserError):  # TensorStore's, of a failing disk
                raise OSError(str(error)) from error
            raise


def _write_layout(checkpoint: Checkpoint, folder: Path, to: str, progress: Progress) -> dict[str, Any]:
    """Writes weights and side files of the layout `hf` or `llava`; returns its config.json."""
    config, prompt = checkpoint.config, checkpoint.prompt
    if to == "llava" and len(config.feature_levels) > 1:
        raise UserError("the original layout takes features of one vision layer, this model joins several: use hf")
    own = checkpoint.own
    shared = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in own}
    linear = config.projector.kind == "linear"
    write_shards(folder, to_torch(shared, to, linear, config.vision.patch_size), progress)
    if checkpoint.compression != "full" or prompt != Prompt():
        write_json(folder / SIDE_CONFIG, {"compression": checkpoint.compression, "prompt": asdict(prompt)})
    if own:
        write_file(folder / SIDE_WEIGHTS, own, progress)
    dtype = checkpoint.dtype
    return hf_dict(config, dtype) if to == "hf" else llava_dict(config, dtype, prompt.aspect)


def _for_hugging_face(checkpoint: Checkpoint, tokenizer: Any | None) -> Checkpoint:
    """With an image token that has an embedding row, since transformers looks it up before it puts the image there."""
    config = checkpoint.config
    if config.projector.kind == "linear":
        raise UserError("transformers' LLaVA has no linear projector: write --to=llava or --to=orbax")
    if tokenizer is not None:
        image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        config = replace(config, image_token=image, pad_token=tokenizer.pad_token_id)
    last = max(config.image_token, config.pad_token)
    if last < config.language.vocabulary:
        return replace(checkpoint, config=config)
    rows = round_up(last + 1, VOCABULARY_MULTIPLE)
    tensors = dict(checkpoint.tensors)
    tensors["language/embedding"] = _more_rows(tensors["language/embedding"], rows)
    if HEAD in tensors:
        tensors[HEAD] = transposed(_more_rows(transposed(tensors[HEAD]), rows))
    language = replace(config.language, vocabulary=rows)
    return replace(checkpoint, tensors=tensors, config=replace(config, language=language))


def _more_rows(tensor: Tensor, rows: int) -> Tensor:
    """The matrix grown to `rows`; each new row is the mean of the old ones."""

    def read(index: Index) -> np.ndarray:
        old = tensor.load()
        mean = old.mean(axis=0, keepdims=True, dtype=np.float32).astype(old.dtype)
        return np.concatenate([old, np.repeat(mean, rows - len(old), axis=0)])[index]

    return replace(tensor, shape=(rows, *tensor.shape[1:]), read=read)


def _copy_companions(source: Path, folder: Path) -> None:
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
