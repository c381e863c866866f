"""The device mesh: axes `data` (rows), `fsdp` (rows, and parameters cut along one axis), `tensor` (heads, widths)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from victor_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of this size over the devices (all, where none are given)."""
    here, shape, kinds = list(devices or jax.devices()), (data, fsdp, tensor), (AxisType.Auto,) * 3
    if math.prod(shape) != len(here):
        raise UserError(
            f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {math.prod(shape)} devices, "
            f"there are {len(here)}"
        )
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


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of the smallest of these devices of this process; None where they do not say."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices) or None


def over_rows(x: jax.Array) -> jax.Array:
    """x [B, …] with its rows cut over the batch axes of the mesh in use; as it is without one, or where they do not
    divide. Without these hints the compiler may gather a whole batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH) <= set(mesh.axis_names) or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))


def row_shares(mesh: Mesh, rows: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Which hosts hold which of `rows`: each share once. A tensor axis over several hosts gives them one share."""
    held: dict[int, set[int]] = {}
    places: Any = NamedSharding(mesh, PartitionSpec(BATCH)).devices_indices_map((rows,))
    for device, (cut,) in places.items():
        held.setdefault(device.process_index, set()).update(range(*cut.indices(rows)))
    shares: dict[tuple[int, ...], list[int]] = {}
    for host, its in held.items():
        shares.setdefault(tuple(sorted(its)), []).append(host)
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != rows:
        raise UserError(
            f"a mesh of {dict(mesh.shape)} cuts the rows unevenly over the hosts: choose other config.mesh.data, "
            "fsdp and tensor"
        )
    return [(tuple(hosts), share) for share, hosts in sorted(shares.items())]


def rows_on_mesh(batch: Any, mesh: Mesh) -> Any:
    """This host's rows of a global batch -> global arrays, cut over the batch axes."""
    places = NamedSharding(mesh, PartitionSpec(BATCH))
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda part: jax.make_array_from_process_local_data(places, np.asarray(part)), batch)


def number_on_mesh(number: np.generic, mesh: Mesh) -> jax.Array:
    """A number that every process knows, on every device. (device_put would compare the processes each time.)"""
    everywhere = NamedSharding(mesh, PartitionSpec())
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback((), everywhere, lambda _: np.asarray(number))


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on this host. Where other processes hold parts of it, all of them must ask."""
    is_here = isinstance(array, np.ndarray) or array.is_fully_addressable
    return np.asarray(array if is_here else multihost_utils.process_allgather(array, tiled=True))
