"""The parameters that both towers are made of. Weights are cast to the compute dtype where they are used."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax

from victor_jax.models.parameters import Axis, Constant, Normal, Start, Uniform, declare
from victor_jax.ops.norms import layer_norm, rms_norm


@dataclass(frozen=True)
class Lora:
    """A low-rank addition to a kernel: kernel + a [in, rank] @ b [rank, out] * alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0  # of the input of a, in training only: where a dropout key is given


def loop_lengths(layers: int, most: int | None) -> tuple[int, ...]:
    """A run of layers as compiled loops over at most so many each (None: one loop). Equal up to one layer.

    The weights of a loop are one array, so a loop is one program for all its layers. On a GPU, though, it copies each
    layer's slice of that array before a kernel can read it.
    """
    count = 1 if most is None else -(-layers // most)
    return tuple(layers // count + (i < layers % count) for i in range(count))


def is_adapter(path: str) -> bool:
    return path.endswith(("/lora_a", "/lora_b"))


class Dense(nn.Module):
    """x @ kernel [in, out] (+ bias [out]) (+ its low-rank addition), in `dtype`."""

    features: int
    bias: bool
    dtype: Any
    lora: Lora | None = None
    axes: tuple[Axis, Axis] = ("fsdp", "tensor")  # mesh axes that shard the kernel
    start: Literal["normal", "torch", "zeros"] = "normal"  # torch: as PyTorch's linear layers start

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        as_torch = Uniform(inputs**-0.5)
        starts: dict[str, Start] = {"normal": Normal(0.02), "torch": as_torch, "zeros": Constant(0.0)}
        kernel = self.param("kernel", declare(starts[self.start], *self.axes), (inputs, self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias:
            start = as_torch if self.start == "torch" else Constant(0.0)
            of_output = "tensor" if self.axes[1] == "tensor" else None  # small: copied where it is not split by width
            bias = self.param("bias", declare(start, of_output), (self.features,)).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y if self.lora is None else y + self._low_rank(x, self.lora)

    def _low_rank(self, x: jax.Array, lora: Lora) -> jax.Array:
        inputs, long_axis = x.shape[-1], ("fsdp", "tensor")
        a = self.param("lora_a", declare(Uniform(inputs**-0.5), long_axis), (inputs, lora.rank))
        b = self.param("lora_b", declare(Constant(0.0), None, long_axis), (lora.rank, self.features))
        x = nn.Dropout(lora.dropout, deterministic=not self.has_rng("dropout"))(x.astype(self.dtype))
        return (x @ a.astype(self.dtype)) @ b.astype(self.dtype) * (lora.alpha / lora.rank)


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", declare(Constant(1.0)), x.shape[-1:]), self.eps)


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", declare(Constant(1.0)), x.shape[-1:])
        bias = self.param("bias", declare(Constant(0.0)), x.shape[-1:])
        return layer_norm(x, scale, bias, self.eps)
