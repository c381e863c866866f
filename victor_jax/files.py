"""Output folders that are whole or absent."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from victor_jax.errors import UserError


def partial_of(destination: Path) -> Path:
    return destination.with_name(destination.name + ".partial")


@contextlib.contextmanager
def new_folder(destination: Path, resumable: bool = False) -> Iterator[Path]:
    """A folder to fill beside `destination`, moved there when the block ends well, removed when it does not.

    `resumable`: an earlier one is gone on with, and it stays if the process is ended; a UserError removes it.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists and is not empty: choose another destination or remove it")
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
        if not resumable or isinstance(error, UserError):
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{destination} cannot be written: {error}") from error
        raise
