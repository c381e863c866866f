"""A tensor not read yet: its shape is known, its bytes are read from the file when asked for, slice by slice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Index = tuple[slice, ...]
# The types that a file may hold: their names in safetensors and of torch's storages.
DTYPES = {
    "float64": ("F64", "DoubleStorage"),
    "float32": ("F32", "FloatStorage"),
    "float16": ("F16", "HalfStorage"),
    "bfloat16": ("BF16", "BFloat16Storage"),
    "int64": ("I64", "LongStorage"),
    "int32": ("I32", "IntStorage"),
    "int16": ("I16", "ShortStorage"),
    "int8": ("I8", "CharStorage"),
    "uint8": ("U8", "ByteStorage"),
    "bool": ("BOOL", "BoolStorage"),
}


@dataclass(frozen=True)
class Tensor:
    """`read(index)` gives the slice `index` (one slice per axis) and touches only what that slice needs."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    key: str = ""  # its name in the file, for messages, where that is not ours

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """The whole tensor, as an array of its own."""
        return self.read(tuple(slice(0, n) for n in self.shape))


def from_array(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda index: array[index])


def transposed(tensor: Tensor) -> Tensor:
    """A matrix with its axes exchanged."""
    return replace(tensor, shape=tensor.shape[::-1], read=lambda index: tensor.read(index[::-1]).T)


def first_rows(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of a tensor that may have more of them along its first axis."""
    return replace(
        tensor, shape=shape, read=lambda index: tensor.read((slice(*index[0].indices(shape[0])), *index[1:]))
    )


def repeated(tensor: Tensor, row: int, times: int) -> Tensor:
    """A matrix of one row of another, so many times."""

    def read(index: Index) -> np.ndarray:
        rows = tensor.read((slice(row, row + 1), *index[1:]))
        return np.repeat(rows, len(range(*index[0].indices(times))), axis=0)

    return replace(tensor, shape=(times, *tensor.shape[1:]), read=read)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Another shape of the same elements. Any slice reads the whole tensor: meant for small ones."""
    return replace(tensor, shape=shape, read=lambda index: tensor.load().reshape(shape)[index])


def equal(one: Tensor, other: Tensor, rows: int = 4096) -> bool:
    """Of two matrices of one shape, some rows at a time; the first difference ends it."""
    parts = [(slice(at, min(at + rows, one.shape[0])), slice(0, one.shape[1])) for at in range(0, one.shape[0], rows)]
    return all(np.array_equal(one.read(part), other.read(part)) for part in parts)


def cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
    return replace(tensor, dtype=np.dtype(dtype), read=lambda index: tensor.read(index).astype(dtype, copy=False))


def stacked(tensors: list[Tensor]) -> Tensor:
    """Equal tensors under a new leading axis (the layers of a stage)."""

    def read(index: Index) -> np.ndarray:
        parts = tensors[index[0]]
        first = parts[0].read(index[1:])
        out = np.empty((len(parts), *first.shape), first.dtype)  # filled one by one: never a second copy
        out[0] = first
        for i, part in enumerate(parts[1:], start=1):
            out[i] = part.read(index[1:])
        return out

    return replace(tensors[0], shape=(len(tensors), *tensors[0].shape), read=read)
