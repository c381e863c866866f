"""What a run leaves in its work folder besides checkpoints and metrics, from config.json to the trained model."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from PIL import Image

from victor_jax.compression.plan import Kind
from victor_jax.data.labels import marked_text
from victor_jax.data.records import Bad
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError
from victor_jax.files import write_whole
from victor_jax.models.layers import Lora, is_adapter
from victor_jax.models.sequence import Batch
from victor_jax.ops.losses import IGNORE
from victor_jax.prompt import Prompt
from victor_jax.sharding.distributed import gather
from victor_jax.sharding.mesh import fetch
from victor_jax.training.optimizer import Params
from victor_jax.training.setup import Run
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.folder import read_json
from victor_jax.weights.place import layers_of
from victor_jax.weights.tensors import Index, Tensor
from victor_jax.weights.write import write_checkpoint

# What may change between a run and its resumption: where it runs and what it says, not what it computes.
FREE = (
    "mesh.",
    "checkpoint.",
    "data.index",
    "data.workers",
    "data.max_bad_rows",
    "log_every",
    "wandb",
    "bad_step.",
    "evaluation.every",
    "evaluation.benchmarks",
    "evaluation.data",
    "evaluation.questions",
    "profile.",
)
ADDED = {"optimizer.cosine": True}  # keys that earlier runs lack, and what those computed
SHOWN = 16  # rows of the first batch


def make_workdir(workdir: str | Path) -> Path:
    if "://" in str(workdir):
        raise UserError(f"--workdir={workdir} is no folder: mount the bucket on every host and name the mounted folder")
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made ({error.strerror}): give another") from None
    if (workdir / "checkpoints").exists() and not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir / 'checkpoints'} is not a folder: give another --workdir")
    return workdir


def parts_before(workdir: Path) -> int:
    """config.micro_batches of the run that has steps in this folder; 0 where there is none."""
    return _config_before(workdir).get("micro_batches", 0) if _has_steps(workdir) else 0


def has_model(workdir: Path) -> bool:
    """Whether the trained model is there: its folder appears whole."""
    return (workdir / "model" / "config.json").exists()


def _has_steps(workdir: Path) -> bool:
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def _config_before(workdir: Path) -> dict[str, Any]:
    file = workdir / "config.json"
    return read_json(file) if file.exists() else {}


def keep_config(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config of the run into its folder. A folder that holds a step of another run is refused, and one that
    holds a finished model and no step to resume from. For the first process: others may see an old state of it."""
    has_steps, before = _has_steps(workdir), flatten_dict(_config_before(workdir), sep=".")
    if not has_steps and (workdir / "model").exists():
        raise UserError(f"{workdir} holds a finished model, and no checkpoint to go on from: give another --workdir")
    if not (has_steps and before):
        write_whole(workdir / "config.json", json.dumps(config, indent=2) + "\n")
        return
    now = flatten_dict(json.loads(json.dumps(config)), sep=".")
    for key in sorted(before.keys() | now.keys()):
        old = before.get(key, ADDED.get(key))
        if not key.startswith(FREE) and old != now.get(key, ADDED.get(key)):
            raise UserError(
                f"{workdir} holds a run with config.{key}={old!r}, now it is {now.get(key)!r}: go on "
                "with the old value, or give another --workdir"
            )


def list_parameters(run: Run, file: Path) -> None:
    """A line per parameter: name, shape, dtype, sharding, and whether it is trained or frozen."""
    with file.open("w") as table:
        for path, leaf in sorted((run.train | run.frozen).items()):
            kind = "trained" if path in run.train else "frozen"
            table.write(f"{path:<48} {list(leaf.shape)!s:<22} {leaf.dtype.name:<9} {leaf.sharding.spec!s:<44} {kind}\n")


def parameter_summary(run: Run) -> str:
    """`projector 21.0 M trained, vision 303.5 M frozen, …`: one entry per part, for the terminal."""
    sizes: dict[tuple[str, str], int] = {}
    for kind, leaves in (("trained", run.train), ("frozen", run.frozen)):
        for path, leaf in leaves.items():
            part = path.split("/")[0], kind
            sizes[part] = sizes.get(part, 0) + leaf.size
    said = {part: f"{size / 1e6:,.1f} M" if size > 1e6 else f"{size:,}" for part, size in sizes.items()}
    return ", ".join(f"{part} {said[part, kind]} {kind}" for part, kind in sizes)


def show_batch(parts: tuple[Batch, ...], tokenizer: Any, folder: Path) -> None:
    """The first rows as the model gets them, for human eyes: PNG images, and text with [[what is supervised]]."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for part in parts:
        for row in range(min(SHOWN - len(lines), len(part.targets))):
            number = len(lines)
            lines.append(f"{number}: {_text(part, row, tokenizer)}")
            for at, image in enumerate(() if part.pixels is None else part.pixels[row]):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}-{at}.png")
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n")


def _text(part: Batch, row: int, tokenizer: Any) -> str:
    """The sequence of one row; visual tokens and registers by their number."""
    kinds, index = np.asarray(part.sequence.kinds[row]), np.asarray(part.sequence.index[row])
    is_supervised = np.concatenate([[False], np.asarray(part.targets[row])[:-1] != IGNORE])
    tokens: list[int | str] = []
    supervised: list[bool] = []
    for kind, run in groupby(np.flatnonzero(kinds != Kind.PADDING).tolist(), key=lambda at: kinds[at]):
        positions = list(run)
        if kind == Kind.TEXT:
            tokens += index[positions].tolist()
            supervised += is_supervised[positions].tolist()
        else:
            tokens.append(f"<{len(positions)} {Kind(kind).name.lower()}>")
            supervised.append(False)
    return marked_text(tokens, supervised, tokenizer)


def _is_bad_row(written: Any) -> bool:
    """Whether it is the number of a row, and a reason."""
    return isinstance(written, list) and [type(part) for part in written] == [int, str]


def check_data(meta: dict[str, Any], data: str, workdir: Path) -> None:
    """Refuses to go on from a checkpoint whose data had another digest."""
    bad_rows = meta.get("bad_rows")
    if not isinstance(meta.get("data"), str) or not (isinstance(bad_rows, list) and all(map(_is_bad_row, bad_rows))):
        raise UserError(f"the newest checkpoint in {workdir} says nothing of its data: delete its folder")
    if meta["data"] != data:
        raise UserError(
            f"the data of the run in {workdir} has changed since its checkpoint: its words, rows or shapes are not the "
            "same; put the old data back, or give another --workdir"
        )


def gather_bad_rows(bad: list[Bad]) -> list[Bad]:
    """The bad rows that any host met. To be called on all of them."""
    return sorted({row: reason for of_host in gather(bad) for row, reason in of_host}.items())


def export(
    run: Run, train: Params, start: Checkpoint, tensors: dict[str, Tensor], companions: Path, destination: Path
) -> None:
    """The trained model, as a checkpoint that `load`, `convert` and `init_from` take: what was trained in the type it
    was trained in, all else bit by bit from `tensors`, those that the run started from.

    Every process takes part in collecting; the first one writes.
    """
    if jax.process_count() > 1:
        whole: Any = ((path, fetch(leaf)) for path, leaf in train.items())
        train = {path: leaf for path, leaf in whole if jax.process_index() == 0}
    if jax.process_index() == 0:
        tensors = tensors | layers_of(train, run.module)
        if run.module.lora:
            tensors = merged(tensors, run.module.lora)
        spec = run.module.method.spec
        data = run.settings.data
        # How the trained model is to be asked. Captions alone teach no way of asking: the default takes their place.
        template = Prompt.template if TEMPLATES[data.template].captions else data.template
        prompt = Prompt(template, data.aspect)
        checkpoint = replace(start, folder=companions, tensors=tensors, compression=spec, prompt=prompt)
        write_checkpoint(checkpoint, destination, "orbax")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("model written")


def merged(tensors: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Per-layer tensors with adapters -> without, each kernel with its addition, computed in float32 when read."""
    plain = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for module in (name.removesuffix("/lora_a") for name in tensors if name.endswith("/lora_a")):
        kernel, a, b = (tensors[f"{module}/{leaf}"] for leaf in ("kernel", "lora_a", "lora_b"))
        plain[f"{module}/kernel"] = _merged_kernel(kernel, a, b, lora)
    return plain


def _merged_kernel(kernel: Tensor, a: Tensor, b: Tensor, lora: Lora) -> Tensor:
    def read(index: Index) -> np.ndarray:
        rows, columns = index
        rank = slice(0, a.shape[1])
        low = a.read((rows, rank)).astype(np.float32) @ b.read((rank, columns)).astype(np.float32)
        return (kernel.read(index).astype(np.float32) + low * (lora.alpha / lora.rank)).astype(kernel.dtype)

    return Tensor(kernel.shape, kernel.dtype, read)
