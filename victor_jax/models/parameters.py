"""One declaration for a parameter: its shape, its sharding over the mesh, and its initial values.

    self.param("kernel", declare(Normal(0.02), "fsdp", "tensor"), (inputs, outputs))

Modules are only traced for their parameters' shapes; values are read from a checkpoint or drawn from the declaration,
tensor by tensor, where they are needed (weights/fresh.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import PartitionSpec

Axis = str | tuple[str, ...] | None  # of the mesh


@dataclass(frozen=True)
class Normal:
    std: float


@dataclass(frozen=True)
class Uniform:
    """From -bound to bound. PyTorch's linear layers start so, with bound = inputs ** -0.5."""

    bound: float


@dataclass(frozen=True)
class Constant:
    value: float


@dataclass(frozen=True)
class Embedding:
    """Each row the embedding of this token, which the checkpoint has."""

    token: int


Start = Normal | Uniform | Constant | Embedding


class Declared(flax.struct.PyTreeNode, meta.AxisMetadata):
    """A parameter with its declaration, as tracing a module finds it."""

    value: Any
    axes: tuple[Axis, ...] = flax.struct.field(pytree_node=False)  # the mesh axis that shards each axis
    start: Start = flax.struct.field(pytree_node=False)
    nested: bool = flax.struct.field(pytree_node=False, default=False)  # the first rows of a larger one will do

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return self.replace(value=val)

    def add_axis(self, index: int, params: Any) -> "Declared":  # layers are stacked along an axis that is never sharded
        return self.replace(axes=(*self.axes[:index], None, *self.axes[index:]))

    def remove_axis(self, index: int, params: Any) -> "Declared":
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*self.axes)


def declare(start: Start, *axes: Axis, nested: bool = False) -> Callable[..., Any]:
    """Axes that are not named are not sharded."""

    def init(key: jax.Array, shape: tuple[int, ...]) -> Declared:
        return Declared(jnp.zeros(shape, jnp.float32), (*axes, *[None] * (len(shape) - len(axes))), start, nested)

    return init
