"""Where activations lie: their rows over the batch axes. Without these hints the compiler may gather a whole batch."""

import jax
from jax.sharding import PartitionSpec

from victor_jax.sharding.mesh import BATCH


def over_rows(x: jax.Array) -> jax.Array:
    """x [B, …] with its rows cut over the batch axes of the mesh in use; as it is without one, or where they do not
    divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH) <= set(mesh.axis_names):
        return x
    if x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))
