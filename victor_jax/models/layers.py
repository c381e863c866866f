"""The parameters that both towers are made of. Weights are cast to the compute dtype where they are used."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from victor_jax.ops.norms import layer_norm, rms_norm


@dataclass(frozen=True)
class Lora:
    """A low-rank addition to a kernel: kernel + a [in, rank] @ b [rank, out] * alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0  # of the input of a, in training only: where a dropout key is given


class Dense(nn.Module):
    """x @ kernel [in, out] (+ bias [out]) (+ its low-rank addition), in `dtype`."""

    features: int
    bias: bool
    dtype: Any
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y if self.lora is None else y + self._low_rank(x, self.lora)

    def _low_rank(self, x: jax.Array, lora: Lora) -> jax.Array:
        a = self.param("lora_a", nn.initializers.lecun_normal(), (x.shape[-1], lora.rank))
        b = self.param("lora_b", nn.initializers.zeros, (lora.rank, self.features))
        x = nn.Dropout(lora.dropout, deterministic=not self.has_rng("dropout"))(x.astype(self.dtype))
        return (x @ a.astype(self.dtype)) @ b.astype(self.dtype) * (lora.alpha / lora.rank)


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
