"""The data of a run: from settings to schedules and sources of batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from victor_jax.compression.plan import Method
from victor_jax.data.batches import BatchSource
from victor_jax.data.images import BadImage, ImageSource, open_images
from victor_jax.data.index import Index, Reader, open_index
from victor_jax.data.records import Records, open_records
from victor_jax.data.sample import write_sample
from victor_jax.data.schedule import Schedule
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.training.settings import Settings
from victor_jax.training.setup import row_shares
from victor_jax.weights.tokenizer import open_tokenizer

SAMPLE = "sample"  # as data.path: made up, for smoke tests
TRIED = 16  # rows whose image is opened before the start, until one is there


@dataclass(frozen=True)
class Inputs:
    index: Index
    train: BatchSource
    held_out: BatchSource | None
    tokenizer: Any
    tokenizer_folder: Path


def open_inputs(settings: Settings, config: VLMConfig, method: Method, mesh: Mesh, workdir: Path) -> Inputs:
    """Everything is checked and indexed here, before any weight is read."""
    data, paths = settings.data, data_paths(settings, workdir)
    records, images = open_rows(paths)
    reader = open_reader(settings, config, method, records, paths)
    index = open_index(
        reader, paths["data"], workdir / "index", data.workers, data.max_bad_rows, jax.process_index() == 0
    )
    good = np.flatnonzero(index.text_lengths)
    if not len(good):
        why = f", the first: {index.bad[0][1]}" if index.bad else ""
        raise UserError(f"none of the {len(reader)} rows of {paths['data']} can be used{why}")
    _check_images(reader, images, good[index.image_counts[good] > 0])
    held = settings.evaluation.rows
    if held >= len(good):
        raise UserError(f"config.evaluation.rows={held} holds out all of the {len(good)} rows that can be used")
    chosen = np.random.default_rng(settings.seed).permutation(good)[:held]
    shares = row_shares(mesh, settings.batch_size // settings.micro_batches)
    mine = next(number for number, (hosts, _) in enumerate(shares) if jax.process_index() in hosts)

    def source(rows: np.ndarray) -> BatchSource:
        schedule = Schedule(
            index,
            settings.batch_size,
            settings.seed,
            method.registers,
            settings.micro_batches,
            rows=rows,
        )
        size = config.vision.image_size
        return BatchSource(reader, images, schedule, method.registers, size, data.aspect, mine, len(shares))  # type: ignore[arg-type]

    held_out = source(chosen) if held and settings.evaluation.every else None
    return Inputs(index, source(np.setdiff1d(good, chosen)), held_out, reader.tokenizer, Path(paths["tokenizer"]))


def open_rows(paths: dict[str, str]) -> tuple[Records, ImageSource]:
    records = open_records(paths["data"])
    return records, open_images(records, paths["images"])


def open_reader(
    settings: Settings, config: VLMConfig, method: Method, records: Records, paths: dict[str, str]
) -> Reader:
    """The rows as the model of `config` reads them."""
    data, tokenizer = settings.data, _open_tokenizer(paths["tokenizer"], config.language.vocabulary)
    return Reader(records, TEMPLATES[data.template], tokenizer, method.tokens_per_image(config), data.max_length)


def data_paths(settings: Settings, workdir: Path) -> dict[str, str]:
    """Where data, images and tokenizer lie; a made-up data set is written into the work folder first."""
    data = settings.data
    if not data.path:
        raise UserError("config.data.path is empty: name a JSON or JSONL file, or a packed folder")
    if data.path == SAMPLE:
        folder = workdir / SAMPLE
        if jax.process_index() == 0:
            write_sample(folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("sample written")
        return {
            "data": str(folder / "data.json"),
            "images": str(folder / "images"),
            "tokenizer": str(folder / "tokenizer"),
        }
    return {"data": data.path, "images": data.images, "tokenizer": data.tokenizer or settings.init_from}


def _check_images(reader: Reader, images: ImageSource, rows: np.ndarray) -> None:
    """Where not one of the first images is there, the folder is another one."""
    failed: list[BadImage] = []
    for row in rows[:TRIED].tolist():
        try:
            images.open(reader[row].images[0])
            return
        except BadImage as error:
            failed.append(error)
    if failed:
        raise UserError(f"config.data.images is not the folder of these rows: of the first, {failed[0]}")


def _open_tokenizer(folder: str, vocabulary: int) -> Any:
    if not Path(folder).is_dir():
        raise UserError(f"config.data.tokenizer: {folder} is no folder; give the folder of the model's tokenizer")
    tokenizer = open_tokenizer(Path(folder))
    if tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model {vocabulary}: they do not belong "
            "together"
        )
    return tokenizer
