"""Folders of PyTorch weights. Read as a table of lazy tensors: safetensors or pickled, one file or indexed shards.
Written as safetensors, tensor by tensor: the library's own writer wants a whole shard in memory."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from victor_jax.errors import UserError, join_names
from victor_jax.files import check_file
from victor_jax.weights.tensors import DTYPES, Index, Tensor
from victor_jax.weights.torch_files import read_torch_file

SIDE_CONFIG = "victor.json"  # beside an hf or llava checkpoint: the compression and the prompt that it was trained with
SIDE_WEIGHTS = "victor.safetensors"  # and the compression's own parameters
SHARD_BYTES = 5 * 10**9
_DTYPES = {code: name for name, (code, _) in DTYPES.items()}


def read_json(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: is {path.parent} the folder of a checkpoint?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise UserError(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder under the key of its file. Safetensors win where there are both kinds."""
    for stem, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch_file)):
        index = folder / f"{stem}.index.json"
        if index.exists():
            return _read_shards(index, read)
        if (folder / stem).exists():
            return read(folder / stem)
    raise UserError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or the index.json of their shards"
    )


def _read_shards(index: Path, read: Any) -> dict[str, Tensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise UserError(f"{index} has no weight_map: it is not the index of a checkpoint")
    shards = sorted(set(where.values()))
    absent = [shard for shard in shards if not os.path.exists(index.parent / shard)]  # of a name that is no path, too
    if absent:
        raise UserError(f"{index} names shards that are not in its folder: {join_names(absent)}; copy them there")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        held = read(index.parent / shard)
        lost = [key for key, home in where.items() if home == shard and key not in held]
        if lost:
            raise UserError(f"{index.parent / shard} lacks tensors that {index.name} says it holds: {join_names(lost)}")
        unlisted = [key for key in held if where.get(key) != shard]
        if unlisted:
            raise UserError(f"{index.parent / shard} holds tensors that {index.name} does not: {join_names(unlisted)}")
        tensors |= held
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    check_file(path)
    with _open(path) as file:
        tensors = {}
        for key in file.keys():  # noqa: SIM118 - the handle is not a dict
            entry = file.get_slice(key)
            kind = entry.get_dtype()
            if kind not in _DTYPES:
                raise UserError(f"tensor {key} in {path} has type {kind}, which is not supported: save it as BF16")
            tensors[key] = Tensor(tuple(entry.get_shape()), np.dtype(_DTYPES[kind]), partial(_read, path, key))
        return tensors


def _read(path: Path, key: str, index: Index) -> np.ndarray:
    # Opened for each read: a file that stays mapped counts, page by page, as resident memory.
    with _open(path) as file:
        part = file.get_slice(key)
        # The library takes no slices of what is empty.
        return part[index] if all(part.get_shape()) and index else file.get_tensor(key)


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): copy it again") from None


def write_shards(folder: Path, tensors: dict[str, Tensor], progress: Any, limit: int = SHARD_BYTES) -> None:
    """model.safetensors, or numbered shards of at most `limit` bytes with model.safetensors.index.json."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if size + tensor.nbytes > limit and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors, progress)
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard, progress)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


def write_file(path: Path, tensors: dict[str, Tensor], progress: Any) -> None:
    """One file: eight bytes of header length, a JSON header, then the tensors end to end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in tensors.items():
        header[key] = {
            "dtype": DTYPES[tensor.dtype.name][0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.load())
            file.write(array.reshape(-1).view(np.uint8).data)
            progress(tensor.nbytes)
