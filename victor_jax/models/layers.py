"""The parameters that both towers are made of. Weights are cast to the compute dtype where they are used."""

from typing import Any

import flax.linen as nn
import jax

from victor_jax.ops.norms import layer_norm, rms_norm


class Dense(nn.Module):
    """x @ kernel [in, out] (+ bias [out]), in `dtype`."""

    features: int
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", nn.initializers.ones, x.shape[-1:]), self.eps)


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, self.eps)
