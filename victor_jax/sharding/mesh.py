"""The device mesh: axes `data` (rows), `fsdp` (rows, and parameters cut along one axis), `tensor` (heads, widths)."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
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
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def rows(mesh: Mesh, count: int) -> NamedSharding:
    """Where an array of `count` rows lies: cut over the batch axes where they divide it, else everywhere whole."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, PartitionSpec(BATCH) if count % parts == 0 else PartitionSpec())


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on this host. Where other processes hold parts of it, all of them must ask."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
