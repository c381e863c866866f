"""The data of a run: from settings to the sources of its batches."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from victor_jax.compression.plan import Method
from victor_jax.data.batches import BatchSource
from victor_jax.data.images import BadImage
from victor_jax.data.index import open_index
from victor_jax.data.labels import Reader
from victor_jax.data.sample import write_sample
from victor_jax.data.schedule import Index, Schedule
from victor_jax.data.settings import DataSettings
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.weights.tokenizer import open_tokenizer

SAMPLE = "sample"  # as data.path: made up, for smoke tests
TRIED = 16  # rows of which one image must be there before anything else is done


@dataclass(frozen=True)
class Inputs:
    index: Index
    train: BatchSource
    held_out: BatchSource | None


def with_paths(data: DataSettings, model_folder: Path, workdir: Path) -> DataSettings:
    """With the folders of tokenizer and index filled in. The made-up data set is first written into the work folder."""
    if not data.path:
        raise UserError("config.data.path is empty: name a .json, .jsonl, .parquet or .tar file, or a packed folder")
    data = replace(data, index=data.index or str(workdir / "index"))
    if data.path != SAMPLE:
        return replace(data, tokenizer=data.tokenizer or str(model_folder))
    folder = workdir / SAMPLE
    if jax.process_index() == 0:
        write_sample(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sample written")
    path, images, tokenizer = (str(folder / name) for name in ("data.json", "images", "tokenizer"))
    return replace(data, path=path, images=images, tokenizer=tokenizer)


def open_reader(data: DataSettings, model: VLMConfig, method: Method) -> Reader:
    """The rows as this model reads them."""
    records = open_source(data.path, data.images)
    if not Path(data.tokenizer).is_dir():
        raise UserError(f"config.data.tokenizer: {data.tokenizer} is no folder; give that of the model's tokenizer")
    tokenizer = open_tokenizer(Path(data.tokenizer))
    if tokenizer.vocab_size > model.language.vocabulary:
        raise UserError(
            f"the tokenizer in {data.tokenizer} has {tokenizer.vocab_size} tokens, the model "
            f"{model.language.vocabulary}: they do not belong together"
        )
    return Reader(records, TEMPLATES[data.template], tokenizer, method.tokens_per_image(model), data.max_length)


def open_inputs(
    data: DataSettings,
    model: VLMConfig,
    method: Method,
    *,
    batch_size: int,
    parts: int,  # of a batch
    seed: int,
    held_out_rows: int,
    shares: list[tuple[int, ...]],  # for each share of a batch's rows, the hosts that read it
) -> Inputs:
    """Everything is checked and indexed here, before any weight is read."""
    reader = open_reader(data, model, method)
    is_first = jax.process_index() == 0
    index = open_index(reader, data.path, Path(data.index), data.workers, data.max_bad_rows, is_first)
    good = np.flatnonzero(index.text_lengths)
    if not len(good):
        why = f", the first: {index.bad[0][1]}" if index.bad else ""
        raise UserError(f"none of the {len(reader)} rows of {data.path} can be used{why}")
    _check_images(reader, good[index.image_counts[good] > 0])
    if held_out_rows >= len(good):
        raise UserError(
            f"config.evaluation.rows={held_out_rows} holds out all of the {len(good)} rows that can be used"
        )
    held_out = np.random.default_rng(seed).permutation(good)[:held_out_rows]
    share = next(number for number, hosts in enumerate(shares) if jax.process_index() in hosts)

    def source(rows: np.ndarray, draws: tuple[int, ...]) -> BatchSource:
        schedule = Schedule(index, batch_size, seed, method.registers, parts, rows=rows)
        size = model.vision.image_size
        return BatchSource(reader, schedule, method.registers, size, data.aspect, share, len(shares), draws)

    train = source(np.setdiff1d(good, held_out), method.draws)
    return Inputs(index, train, source(held_out, ()) if held_out_rows else None)


def _check_images(reader: Reader, rows: np.ndarray) -> None:
    """Where not one of the first images is there, the folder is another one."""
    failed: list[BadImage] = []
    for row in rows[:TRIED].tolist():
        try:
            reader.records.open(reader[row].images[0])
            return
        except BadImage as error:
            failed.append(error)
    if failed:
        raise UserError(f"config.data.images is not the folder of these rows: of the first, {failed[0]}")
