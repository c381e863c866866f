"""Output folders that are whole or absent."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from victor_jax.errors import UserError


def partial_of(destination: Path) -> Path:
    return destination.with_name(destination.name + ".partial")


def check_free(destination: Path) -> Path:
    """The folder that a link leads to, if nothing is in it."""
    try:
        destination = destination.resolve()
        is_free = not destination.exists() or (destination.is_dir() and not any(destination.iterdir()))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UserError(f"{destination} cannot be written: {error}") from None
    if not is_free:
        raise UserError(f"{destination} exists and is not empty: choose another destination or remove it")
    return destination


@contextlib.contextmanager
def new_folder(destination: Path, resumable: bool = False) -> Iterator[Path]:
    """A folder to fill beside `destination`, moved there when the block ends well, removed when it does not.

    `resumable`: a folder that an earlier process left is continued, and an error leaves it to the next process.
    """
    destination = check_free(destination)
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
