"""Input files that are files, output folders that are whole or absent."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from victor_jax.errors import UserError


def check_file(path: Path) -> None:
    """Refuses a folder; a pipe, which may never end; a device, which gives anything. A path that leads nowhere passes:
    what it means that a file is absent, its reader knows."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file")


def partial_of(destination: Path) -> Path:
    return destination.with_name(destination.name + ".partial")


def check_free(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists and is not empty: choose another destination or remove it")


@contextlib.contextmanager
def new_folder(destination: Path, resumable: bool = False) -> Iterator[Path]:
    """A folder to fill beside `destination`, moved there when the block ends well, removed when it does not.

    `resumable`: a folder that an earlier process left is continued, and an error leaves it to the next process.
    """
    check_free(destination)
    partial = partial_of(destination)
    if partial.exists() and not resumable:
        shutil.rmtree(partial)  # left by a process that was killed
    try:
        partial.mkdir(parents=True, exist_ok=resumable)
        yield partial
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{destination} cannot be written: {error}") from error
        raise
