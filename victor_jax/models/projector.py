"""From the vision tower's features to the language tower's input space."""

from typing import Any

import flax.linen as nn
import jax

from victor_jax.models.config import ProjectorConfig
from victor_jax.models.layers import Dense


class Projector(nn.Module):
    config: ProjectorConfig
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:  # [I, P, features] -> [I, P, D]
        x = Dense(self.width, self.config.bias, self.dtype, start="torch", name="linear_1")(features)
        if self.config.kind == "linear":
            return x
        x = jax.nn.gelu(x, approximate=False)
        axes = ("tensor", "fsdp")
        return Dense(self.width, self.config.bias, self.dtype, axes=axes, start="torch", name="linear_2")(x)
