"""The device mesh: axes `data` (rows), `fsdp` (rows, and parameters cut along one axis), `tensor` (heads, widths)."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from victor_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    at_hand = len(devices if devices is not None else jax.devices())
    if data * fsdp * tensor != at_hand:
        raise UserError(
            f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {data * fsdp * tensor} devices, "
            f"there are {at_hand}"
        )
    shape, kinds = (data, fsdp, tensor), (AxisType.Auto,) * 3
    here = list(devices if devices is not None else jax.devices())
    if here[0].platform == "tpu":  # an axis of ours may be a part of a torus axis, which jax.make_mesh refuses on some
        grid = mesh_utils.create_device_mesh(shape, here, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=kinds)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=here)


def of_parameter(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    """Where a parameter lies; an axis that its mesh axis does not divide is an error, never a silent copy."""
    for size, cut in zip(shape, spec, strict=False):
        axes = cut if isinstance(cut, tuple) else (cut,) if cut else ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            axis = " * ".join(axes)
            raise UserError(
                f"parameter {path} {shape} does not divide over the mesh: {size} by {axis}={parts}; "
                f"choose another {axis}"
            )
    return NamedSharding(mesh, spec)


def rows(mesh: Mesh, count: int) -> NamedSharding:
    """Where an array of `count` rows lies: cut over the batch axes where they divide it, else everywhere whole."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, PartitionSpec(BATCH) if count % parts == 0 else PartitionSpec())


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on this host. Where other processes hold parts of it, all of them must ask."""
    is_here = isinstance(array, np.ndarray) or array.is_fully_addressable
    return np.asarray(array if is_here else multihost_utils.process_allgather(array, tiled=True))
