"""From per-layer tensors in files to the parameter tree of a plan on its devices, and back.

Each leaf is read slice by slice: a process touches only the bytes of the shards that it holds, and each once.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format

from victor_jax.models.layers import loop_lengths
from victor_jax.models.vision import stage_lengths
from victor_jax.models.vlm import VLMModule
from victor_jax.sharding.mesh import fetch
from victor_jax.weights.tensors import Index, Tensor, cast, from_array, stacked

Bounds = tuple[tuple[int, int], ...]  # start and stop on each axis


def sources(path: str, module: VLMModule) -> list[str]:
    """A parameter's path -> the per-layer names that it is made of, in order."""
    part, *rest = path.split("/")
    if not rest or not rest[0].startswith("stages_"):
        return [path]
    stage, loop = map(int, rest[0].split("_")[1:])
    stages = stage_lengths(module.config, module.method.compressor) if part == "vision" else module.method.plan.stages
    loops = loop_lengths(stages[stage], module.layers_per_loop)
    first = sum(stages[:stage]) + sum(loops[:loop])
    return ["/".join((part, "layers", str(layer), *rest[1:])) for layer in range(first, first + loops[loop])]


def place(
    abstract: dict[str, jax.ShapeDtypeStruct], tensors: dict[str, Tensor], module: VLMModule
) -> dict[str, jax.Array]:
    """Parameters by path, of the types and in the places that `abstract` says, read one leaf after the other."""
    return {path: put(gather(path, tensors, module, leaf.dtype), leaf.format) for path, leaf in abstract.items()}


def gather(path: str, tensors: dict[str, Tensor], module: VLMModule, dtype: np.dtype) -> Tensor:
    """A leaf, still lazy; its layers are cast one by one, so that no second stack is ever held."""
    names = sources(path, module)
    parts = [cast(tensors[name], dtype) for name in names]
    return parts[0] if names == [path] else stacked(parts)


def unused_tensors(tensors: dict[str, Tensor], paths: Iterable[str], module: VLMModule) -> dict[str, Tensor]:
    """The tensors that none of the parameters is made of, read into memory: kept to be saved again."""
    used = {name for path in paths for name in sources(path, module)}
    return {name: from_array(tensor.load()) for name, tensor in tensors.items() if name not in used}


def put(tensor: Tensor, where: Format) -> jax.Array:
    """A leaf on its devices. Shards of this process that fill one box are read as one; equal ones are read once."""

    def bounds(index: Any) -> Bounds:
        return tuple(cut.indices(n)[:2] for cut, n in zip(index, tensor.shape, strict=True))

    @functools.cache
    def read(part: Bounds) -> np.ndarray:
        return tensor.read(tuple(slice(start, stop) for start, stop in part))

    assert where.sharding is not None
    mine = {bounds(index) for index in where.sharding.addressable_devices_indices_map(tensor.shape).values()}
    box = _box(mine)
    is_filled = _volume(box) == sum(map(_volume, mine))

    def shard(index: Any) -> np.ndarray:
        part = bounds(index)
        if not is_filled:
            return read(part)
        return read(box)[tuple(slice(start - b, stop - b) for (start, stop), (b, _) in zip(part, box, strict=True))]

    return jax.make_array_from_callback(tensor.shape, where, shard)


def _box(parts: set[Bounds]) -> Bounds:
    """The smallest that holds them all."""
    axes = zip(*parts, strict=True)
    return tuple((min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in axes)


def _volume(part: Bounds) -> int:
    return math.prod(stop - start for start, stop in part)


def layers_of(params: dict[str, jax.Array], module: VLMModule) -> dict[str, Tensor]:
    """Parameters by path -> lazy per-layer tensors, each fetched from its devices when it is read."""
    return {
        name: _part_of(leaf, () if name == path else (layer,))
        for path, leaf in params.items()
        for layer, name in enumerate(sources(path, module))
    }


def _part_of(array: jax.Array, layer: tuple[int, ...]) -> Tensor:
    def read(index: Index) -> np.ndarray:
        return fetch(array[(*layer, *index)])

    return Tensor(array.shape[len(layer) :], np.dtype(array.dtype), read)
