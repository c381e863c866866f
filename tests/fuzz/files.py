"""Files of weights: safetensors and their index, and torch's pickles. The references are the libraries themselves."""

import functools
import io
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from fuzz import models
from fuzz.property import REFUSALS, Surface
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps, numbers
from victor_jax.weights.folder import read_safetensors
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.torch_files import read_torch_file

MOST = 1 << 24  # bytes of a tensor that is loaded: a file may describe any size by a stride of 0
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    made = {f"t{number}.weight": torch.arange(12).reshape(3, 4).to(kind) for number, kind in enumerate(TYPES[:-1])}
    return made | {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(8.0)[2:5],
        "empty": torch.zeros(0, 3),
    }


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(found[name].astype(array.dtype), array, err_msg=name)


@dataclass(frozen=True)
class Safe:
    changes: list[Change]
    length: int  # added to that of the header
    damage: list[Damage]
    extra: bytes


class Safetensors(Surface):
    name, short = "safetensors", 300
    inputs = st.builds(
        Safe,
        st.one_of(changes, st.just([])),
        st.one_of(st.just(0), st.just(0), numbers),
        st.one_of(st.just([]), st.just([]), damages),
        st.sampled_from((b"", b"", b"\0", bytes(100))),
    )

    def prepare(self, given, room):
        data = save({name: tensor.contiguous() for name, tensor in tensors().items()})
        (size,) = struct.unpack("<Q", data[:8])
        header = dumps(changed(json.loads(data[8 : 8 + size]), given.changes)).encode("utf-8", "surrogatepass")
        length = (len(header) + given.length) % 2**64
        whole = struct.pack("<Q", length) + header + data[8 + size :] + given.extra
        (room / "model.safetensors").write_bytes(damaged(whole, given.damage))
        return room / "model.safetensors"

    def attempt(self, prepared, room):
        return {name: tensor.load() for name, tensor in read_safetensors(prepared).items()}

    def compare(self, prepared, result):
        if not isinstance(result, REFUSALS):
            assert_equal(result, load_file(prepared))


@dataclass(frozen=True)
class Index:
    changes: list[Change]


class Indices(Surface):
    """model.safetensors.index.json beside a whole model.safetensors."""

    name, short = "shard-index", 60
    inputs = st.builds(Index, changes)

    def prepare(self, given, room):
        copy = models.copied("hf", room)
        keys = read_safetensors(models.folder("hf") / "model.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, "model.safetensors")}
        text = dumps(changed(index, given.changes))
        (copy / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        return copy

    def attempt(self, prepared, room):
        return open_checkpoint(prepared)


@dataclass(frozen=True)
class Pickled:
    """A state dict as torch saves it, with some arguments of its tensors replaced, then damaged."""

    arguments: list[tuple[int, Any]]  # (which, what) of the storage offset, shape and strides of a tensor
    inner: list[Damage]  # of data.pkl
    outer: list[Damage]  # of the zip file
    compressed: bool


class _Rebuild:
    """Pickles as a call of torch's, with any arguments."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


class TorchFiles(Surface):
    name, short = "torch-pickles", 300
    inputs = st.builds(
        Pickled,
        st.lists(
            st.tuples(
                st.integers(0, 5),
                st.one_of(
                    numbers,
                    st.lists(numbers, max_size=3).map(tuple),
                    st.none(),
                    st.sampled_from(("0", "", "absent", "../0", 1.5, (2**40,), (0,), (2**20, 2**20), torch.IntStorage)),
                ),
            ),
            max_size=3,
        ),
        st.one_of(st.just([]), st.just([]), damages),
        st.one_of(st.just([]), st.just([]), damages),
        st.sampled_from((False, False, False, True)),
    )

    def prepare(self, given, room):
        parts: list[Any] = [torch.FloatStorage, "0", 8, 0, (2, 4), (4, 1)]
        for which, what in given.arguments:
            parts[which] = what
        kind, key, size, *view = parts
        file = io.BytesIO()
        _Pickler(file, 2).dump({"t": _Rebuild(("storage", kind, key, "cpu", size), *view, False, {})})
        whole = io.BytesIO()
        how = zipfile.ZIP_DEFLATED if given.compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(whole, "w", how) as archive:
            archive.writestr("archive/data.pkl", damaged(file.getvalue(), given.inner))
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", np.arange(8, dtype=np.float32).tobytes())
            archive.writestr("archive/version", "3\n")
        (room / "pytorch_model.bin").write_bytes(damaged(whole.getvalue(), given.outer))
        return room / "pytorch_model.bin"

    def attempt(self, prepared, room):
        found = read_torch_file(prepared)
        return {name: tensor.load() for name, tensor in found.items() if tensor.nbytes < MOST}

    def compare(self, prepared, result):
        if isinstance(result, REFUSALS) or zipfile.ZipFile(prepared).testzip():
            return
        try:
            expected = torch.load(prepared, weights_only=True)
        except Exception:  # stricter than we are
            return
        assert_equal(result, {name: tensor for name, tensor in expected.items() if tensor.nbytes < MOST})
