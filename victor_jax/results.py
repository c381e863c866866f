"""A folder of results that grows line by line and can go on where it stopped: its settings.json says what its lines
were computed with."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from victor_jax.errors import UserError
from victor_jax.files import check_file, write_whole

NAMES = ("model", "revision")  # a folder may have moved, code been committed: what was computed is the same


def check_settings(settings: dict[str, Any], out: Path, lines: Path) -> None:
    """Refuses a folder whose lines were computed with others."""
    file, what = out / "settings.json", lines.stem
    if file.exists():
        old, new = (flatten_dict(one, sep=".") for one in (read_json(file), settings))
        changed = [
            f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in dict.fromkeys([*old, *new])
            if key not in NAMES and old.get(key) != new.get(key)
        ]
        if changed:
            raise UserError(f"{out} holds {what} under other settings: {'; '.join(changed)}. Give another --out")
    elif lines.exists():
        raise UserError(f"{out} holds {what} without the settings that gave them: give another --out")


def keep_settings(settings: dict[str, Any], out: Path, lines: Path) -> None:
    """Written by the first call, and the same in all that go on with it."""
    check_settings(settings, out, lines)
    if (file := out / "settings.json").exists():
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None


def whole_lines(file: Path) -> list[bytes]:
    """Those that were written before. One that was cut short is taken off the file."""
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file: give another --out")
    written = file.read_bytes() if file.exists() else b""
    whole = written[: written.rfind(b"\n") + 1]
    if whole != written:
        os.truncate(file, len(whole))
    return whole.splitlines()


def stamp_of(folder: Path) -> str:
    """Changes when a file of the checkpoint is written anew."""
    files = [file for file in (*folder.glob("*"), *folder.glob("params/**/*")) if file.is_file()]
    stamp = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        stamp.update(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return stamp.hexdigest()[:16]


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_whole(file, json.dumps(value, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    check_file(file)
    try:
        if isinstance(value := json.loads(file.read_text()), dict):
            return value
    except (ValueError, RecursionError, OSError):
        pass
    raise UserError(f"{file} was not written by this command: give another --out")
