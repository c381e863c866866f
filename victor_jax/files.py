"""Output folders that are whole or absent."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from victor_jax.errors import UserError


@contextlib.contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder to fill beside `destination`, moved there when the block ends well, removed when it does not."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists and is not empty: choose another destination or remove it")
    partial = destination.with_name(destination.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by a process that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{destination} cannot be written: {error}") from error
        raise
