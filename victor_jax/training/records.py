"""What a run leaves in its work folder besides checkpoints and metrics: its config, its first batch, its bad rows."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from victor_jax.compression.plan import Kind
from victor_jax.data.index import Bad
from victor_jax.data.show import marked_text
from victor_jax.errors import UserError
from victor_jax.models.sequence import Batch
from victor_jax.ops.losses import IGNORE
from victor_jax.training.settings import flat

# What may change between a run and its resumption: where it runs and what it says, not what it computes.
FREE = (
    "mesh.",
    "checkpoint.",
    "data.workers",
    "data.max_bad_rows",
    "log_every",
    "wandb",
    "bad_step.",
    "evaluation.every",
)
SHOWN = 16  # rows of the first batch


def open_workdir(workdir: str | Path) -> Path:
    if "://" in str(workdir):
        raise UserError(f"--workdir={workdir} is no folder: mount the bucket on every host and name the mounted folder")
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made ({error.strerror}): give another") from None
    return Path(workdir)


def keep_config(config: dict[str, Any], workdir: Path, write: bool) -> None:
    """Writes config.json; once the run has saved a step, refuses a config that is another run's."""
    file = workdir / "config.json"
    now = flat(json.loads(json.dumps(config)))
    if file.exists() and any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*")):
        before = flat(json.loads(file.read_text()))
        for key in sorted(before.keys() | now.keys()):
            if not key.startswith(FREE) and before.get(key) != now.get(key):
                raise UserError(
                    f"{workdir} holds a run with config.{key}={before.get(key)!r}, now it is {now.get(key)!r}: go on "
                    "with the old value, or give another --workdir"
                )
    elif write:
        file.write_text(json.dumps(config, indent=2) + "\n")


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


def gathered(bad: list[Bad]) -> list[Bad]:
    """The bad rows that any host met. To be called on all of them."""
    if jax.process_count() == 1:
        return bad
    text = np.frombuffer(json.dumps(bad).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    return sorted({row: reason for one in texts for row, reason in json.loads(one.tobytes())}.items())


def list_bad_rows(bad: list[Bad], file: Path) -> None:
    file.write_text("".join(json.dumps({"row": row, "reason": reason}) + "\n" for row, reason in bad))
