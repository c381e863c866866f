"""The devices that answer: how weights and rows are spread over them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from victor_jax.errors import UserError
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.sharding.mesh import BATCH, device_memory, make_mesh


def check_mesh(mesh: Mesh) -> None:
    if mesh.shape["fsdp"] > 1:
        raise UserError(
            f"a mesh with fsdp={mesh.shape['fsdp']} would gather all weights for every token: for answering, give its "
            "devices to data (each holds all weights) or to tensor (each holds a part of every layer)"
        )


def mesh_for(module: VLMModule, devices: Sequence[jax.Device]) -> Mesh | None:
    """Over all of these devices; None for a single one. On CPU one device has all cores already."""
    if devices[0].platform == "cpu":
        return None
    data, tensor = len(devices), 1
    if memory := device_memory(devices):
        config, declared = module.config, parameters(module).values()
        weights = sum(math.prod(leaf.shape) for leaf in declared) * module.dtype.itemsize
        cut = {config.language.heads, config.language.kv_heads, config.vision.heads}
        for leaf in declared:
            cut |= {size for size, axis in zip(leaf.shape, leaf.axes, strict=True) if axis and "tensor" in axis}
        data, tensor = axes_for(len(devices), weights, memory, cut)
    return None if len(devices) == 1 else make_mesh(data=data, tensor=tensor, devices=devices)


def axes_for(devices: int, weights: int, memory: int, cut: set[int]) -> tuple[int, int]:
    """The sizes of `data` and `tensor`, for `weights` bytes on devices of `memory` bytes each.

    Each device holds a copy of the weights where they take at most half of its memory (caches and activations need the
    rest): answering then needs no transfers. Else the smallest tensor axis that gets there, or the largest that there
    is. `cut`: the numbers that the tensor axis must divide.
    """
    possible = [n for n in range(1, devices + 1) if not any(size % n for size in {devices, *cut})]
    tensor = next((n for n in possible if weights / n <= memory / 2), possible[-1])
    if weights / tensor >= memory:
        raise UserError(
            f"the weights take {weights / 2**30:.1f} GiB, and {devices} device{'s' * (devices > 1)} of "
            f"{memory / 2**30:.1f} GiB can hold at most {tensor} parts of them, since parts must divide the heads and "
            f"widths of the model: take more or larger devices, or a 16-bit dtype"
        )
    return devices // tensor, tensor


def place_rows(batch: Any, mesh: Mesh) -> Any:
    """A batch that every process holds -> its rows over the batch axes. Where they do not divide, copies of the last
    row fill the batch up. (Not empty rows: decoding goes on until every row has ended, and an empty one may never.)"""
    places, parts = NamedSharding(mesh, PartitionSpec(BATCH)), mesh.shape["data"] * mesh.shape["fsdp"]

    def placed(rows: np.ndarray) -> jax.Array:
        fillers = [(0, -len(rows) % parts)] + [(0, 0)] * (rows.ndim - 1)
        return jax.device_put(np.pad(rows, fillers, mode="edge"), places)

    return jax.tree.map(placed, batch)
