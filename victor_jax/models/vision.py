"""The CLIP vision tower: images in, patch features of the levels asked for out."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Compressor
from victor_jax.compression.stream import Seen
from victor_jax.models.config import Activation, VisionConfig, VLMConfig
from victor_jax.models.layers import Dense, LayerNorm, loop_lengths
from victor_jax.models.parameters import Normal, declare
from victor_jax.ops.attention import Implementation, attention
from victor_jax.sharding.mesh import over_rows

Look = Callable[[jax.Array, jax.Array], Any]  # see Compressor

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class VisionAttention(nn.Module):
    heads: int
    dtype: Any
    implementation: Implementation
    look: Look | None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        """x [I, T, D] -> [I, T, D], and what `look` finds in its queries and keys."""
        width = x.shape[-1]
        q, k, v = (
            Dense(width, True, self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name in ("q", "k", "v")
        )
        y = attention(q, k, v, causal=False, implementation=self.implementation)
        y = Dense(width, True, self.dtype, axes=("tensor", "fsdp"), name="o")(y.reshape(x.shape))
        return y, self.look and self.look(q, k)


class VisionMLP(nn.Module):
    width: int
    activation: Activation
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [I, T, D] -> [I, T, D]
        hidden = ACTIVATIONS[self.activation](Dense(self.width, True, self.dtype, name="up")(x))
        return Dense(x.shape[-1], True, self.dtype, axes=("tensor", "fsdp"), name="down")(hidden)


class VisionLayer(nn.Module):
    config: VisionConfig
    dtype: Any
    implementation: Implementation
    look: Look | None

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, Any]:  # the form that nn.scan wants
        x, c = over_rows(x), self.config
        y = LayerNorm(c.norm_eps, name="norm1")(x)
        y, found = VisionAttention(c.heads, self.dtype, self.implementation, self.look, name="attention")(y)
        x = x + y
        y = LayerNorm(c.norm_eps, name="norm2")(x)
        return x + VisionMLP(c.mlp_width, c.activation, self.dtype, name="mlp")(y), found


class VisionTower(nn.Module):
    """Layers that neither the features nor the compressor need are neither run nor held."""

    config: VLMConfig
    compressor: Compressor | None
    dtype: Any
    implementation: Implementation
    layers_per_loop: int | None = None

    @nn.compact
    def __call__(self, pixels: jax.Array) -> Seen:
        """pixels [I, 3, size, size] -> features [I, P (+ 1), D * levels], and what the compressor asks for."""
        c, compressor = self.config.vision, self.compressor
        looked = compressor.looked(self.config) if compressor else range(0)
        x = Dense(c.width, False, self.dtype, axes=(None, None), name="patch_embedding")(patches(pixels, c.patch_size))
        class_token = self.param("class_embedding", declare(Normal(0.02)), (c.width,))
        class_token = jnp.broadcast_to(class_token.astype(x.dtype), (x.shape[0], 1, c.width))
        positions = self.param("position_embedding", declare(Normal(0.02)), (c.patches + 1, c.width))
        x = jnp.concatenate([class_token, x], axis=1) + positions.astype(x.dtype)[None]
        x = LayerNorm(c.norm_eps, name="pre_norm")(x)

        reached: dict[int, jax.Array] = {0: x}
        looks = []
        for i, layers in enumerate(stage_lengths(self.config, compressor)):
            look = compressor.look if compressor and max(reached) in looked else None
            for j, length in enumerate(loop_lengths(layers, self.layers_per_loop)):
                loop = nn.scan(
                    VisionLayer,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=length,
                    check_constancy_invariants=False,  # nothing is broadcast out of it: traces the layer once
                )
                x, found = loop(c, self.dtype, self.implementation, look, name=f"stages_{i}_{j}")(x, None)
                looks += [] if found is None else [found]
            reached[max(reached) + layers] = x
        features = jnp.concatenate([reached[level] for level in self.config.feature_levels], axis=-1)
        return Seen(
            features if self.config.keep_class_token else features[:, 1:],
            {level: reached[level] for level in (compressor.levels(self.config) if compressor else ())},
            jax.tree.map(lambda *found: jnp.concatenate(found), *looks) if looks else None,
        )


def stage_lengths(config: VLMConfig, compressor: Compressor | None) -> tuple[int, ...]:
    """The runs of layers between the levels at which something is taken, or looking begins or ends."""
    stops = {0, *config.feature_levels}
    if compressor:
        looked = compressor.looked(config)
        stops |= {*compressor.levels(config), *((looked.start, looked.stop) if looked else ())}
    return tuple(b - a for a, b in itertools.pairwise(sorted(stops)))


def patches(pixels: jax.Array, size: int) -> jax.Array:
    """pixels [I, 3, h, w] -> [I, P, 3 * size * size]; pixels beyond the last whole patch are left out."""
    images, channels, height, width = pixels.shape
    rows, columns = height // size, width // size
    x = pixels[:, :, : rows * size, : columns * size]
    x = x.reshape(images, channels, rows, size, columns, size).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(images, rows * columns, channels * size * size)
