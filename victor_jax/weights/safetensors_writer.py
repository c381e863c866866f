"""Safetensors shards written tensor by tensor: the library's own writer wants a whole shard in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from victor_jax.weights.tensors import Tensor

SHARD_BYTES = 5 * 10**9

_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


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
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: Path, tensors: dict[str, Tensor], progress: Any) -> None:
    """One file: eight bytes of header length, a JSON header, then the tensors end to end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in tensors.items():
        header[key] = {
            "dtype": _CODES[tensor.dtype.name],
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
