"""PyTorch checkpoints (`.bin`, `.pt`) without torch: nothing in the file is run, and tensors are read lazily.

Such a file is an uncompressed zip: `<prefix>/data.pkl` describes the tensors as views of storages, and
`<prefix>/data/<key>` holds one storage's raw bytes.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401 - gives numpy the name bfloat16
import numpy as np

from victor_jax.errors import UserError
from victor_jax.files import check_file
from victor_jax.weights.tensors import DTYPES, Index, Tensor

STORAGE_DTYPES = {storage: np.dtype(name) for name, (_, storage) in DTYPES.items()}
DAMAGED = "is truncated or damaged: download or copy it again"


def read_torch_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a state dict by name. Only their descriptions are read now."""
    path = os.fspath(path)
    check_file(Path(path))
    with _errors_naming(path), open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise _UnreadableError("is no checkpoint of torch 1.6 or later: re-save it with a current torch")
        with zipfile.ZipFile(file) as archive:
            prefix = _checked_prefix(archive)
            views = _views_by_name(archive.read(f"{prefix}/data.pkl"))
            keys = {view.storage.key for view in views.values()}
            storages = {key: _bytes_in_file(archive, file, f"{prefix}/data/{key}") for key in keys}
        return {name: _tensor(name, view, storages[view.storage.key], path) for name, view in views.items()}


class _UnreadableError(Exception):
    """Why a file cannot be read: the rest of a sentence that begins with the file's name."""


@contextmanager
def _errors_naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except _UnreadableError as reason:
        raise UserError(f"'{path}' {reason}.") from reason
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:  # of zipfile
        raise UserError(f"'{path}' {DAMAGED}.") from error


def _checked_prefix(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    prefixes = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(prefixes) != 1:
        raise _UnreadableError("is a zip file but no PyTorch checkpoint: it needs one data.pkl")
    if any(member.header_offset < 0 for member in archive.infolist()):
        raise _UnreadableError(DAMAGED)
    if any(member.compress_type or member.flag_bits & 1 for member in archive.infolist()):
        raise _UnreadableError("has compressed or encrypted parts, unlike torch's own: re-save it with torch")
    order = f"{prefixes[0]}/byteorder"  # torch before 2.1 does not write it
    if order in names and archive.read(order) != b"little":
        raise _UnreadableError("is not little-endian: re-save it on a little-endian machine")
    return prefixes[0]


def _bytes_in_file(archive: zipfile.ZipFile, file: BinaryIO, member_name: str) -> range:
    try:
        member = archive.getinfo(member_name)
    except KeyError as error:
        raise _UnreadableError(f"lacks its part {member_name!r}: download or copy it again") from error
    # Opening reads the member's own header, which torch pads to align the data, and stops where the data begins.
    with archive.open(member):
        start = file.tell()
    if start + member.file_size > os.fstat(file.fileno()).st_size:
        raise _UnreadableError(DAMAGED)
    return range(start, start + member.file_size)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _View(NamedTuple):
    """A strided window on a storage. `offset` and `strides` are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def sliced(self, index: Index) -> _View:
        axes = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        moves = [axis.start * stride for axis, stride in zip(axes, self.strides, strict=True)]
        strides = tuple(axis.step * stride for axis, stride in zip(axes, self.strides, strict=True))
        return _View(self.storage, self.offset + sum(moves), tuple(map(len, axes)), strides)

    def span(self) -> range:
        """The storage's elements from the first to the last that the view touches."""
        if 0 in self.shape:
            return range(0)
        reaches = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        below, above = sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)
        return range(self.offset + below, self.offset + above + 1)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, flags: Any = None
) -> _View:
    numbers_fit = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(storage, _Storage) or not numbers_fit or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor's description makes no sense")
    if flags:
        raise _UnreadableError("holds a lazily negated tensor: re-save it after `tensor.resolve_neg()`")
    return _View(storage, offset, tuple(shape), tuple(strides))


CALLABLES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        function = CALLABLES.get(f"{module}.{name}")
        if function is None:
            raise _UnreadableError(
                f"asks for {module}.{name}, and this reader refuses to run code from a file: "
                "re-save it as a plain dict of tensors"
            )
        return lambda *args: function(*args)  # of its own: a pickle can set attributes on what it gets

    def persistent_load(self, pid: Any) -> _Storage:
        _, storage_class, key, *_ = pid
        if not isinstance(storage_class, str) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage's description makes no sense")
        if storage_class not in STORAGE_DTYPES:
            raise _UnreadableError(f"has a tensor in a {storage_class}, which is not supported")
        return _Storage(key, STORAGE_DTYPES[storage_class])


def _views_by_name(pickled: bytes) -> dict[str, _View]:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if "PUT" in opcode.name and int(argument or 0) > len(pickled):  # a table of that length would be made
                raise pickle.UnpicklingError("a number makes no sense")
        state = _RestrictedUnpickler(io.BytesIO(pickled)).load()
        state = dict(state) if isinstance(state, dict) else None  # without attributes, of which a module's has some
    except _UnreadableError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _UnreadableError("has a damaged data.pkl: download or copy it again") from error
    if state is None:
        raise _UnreadableError("does not hold a dict of tensors: re-save its state dict alone")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _View):
            called = repr(name) if isinstance(name, str | int) else f"named by a {type(name).__name__}"  # of any size
            raise _UnreadableError(f"has an entry {called} that is no tensor: re-save its state dict alone")
    return state


def _tensor(name: str, view: _View, storage: range, path: str) -> Tensor:
    dtype = view.storage.dtype
    if view.span().stop * dtype.itemsize > len(storage):
        raise _UnreadableError(f"has too few bytes for its tensor {name!r}: download or copy it again")

    def read(index: Index) -> np.ndarray:
        part = view.sliced(index)
        span = part.span()
        with _errors_naming(path):
            data = np.fromfile(path, dtype, len(span), offset=storage.start + span.start * dtype.itemsize)
            if len(data) < len(span):
                raise _UnreadableError(DAMAGED)
        offset = (part.offset - span.start) * dtype.itemsize if span else 0
        strides = [stride * dtype.itemsize for stride in part.strides]
        array: np.ndarray = np.ndarray(part.shape, dtype, data, offset, strides)
        return array if array.flags.c_contiguous else array.copy()  # lets go of the bytes between

    return Tensor(view.shape, dtype, read)
