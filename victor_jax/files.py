"""Input files that are files, output folders that are whole or absent."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from victor_jax.errors import UserError


def check_file(path: Path) -> None:
    """Refuses a pipe, which may never end, and a device, which gives anything. What it means that there is none, or a
    folder, its reader knows."""
    try:
        is_strange = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as error:  # a name that is too long
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if is_strange:
        raise UserError(f"{path} is a pipe or a device, not a file")


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
def writing(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only is one sentence. These errors come from writing alone."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def write_whole(file: Path, text: str) -> None:
    """The file holds all of the text, or is what it was before."""
    partial = partial_of(file)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


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
            remove(partial)
        if isinstance(error, OSError):
            raise UserError(f"{destination} cannot be written: {error}") from error
        raise


def remove(folder: Path) -> None:
    """Threads that write there may end a moment after the error: what they leave is removed too."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
