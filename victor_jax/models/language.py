"""The staged language tower: runs of layers, each at one static length with a KV cache of its own length."""

from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from victor_jax.compression import cut
from victor_jax.compression.plan import Kind, Plan
from victor_jax.models.config import LanguageConfig
from victor_jax.models.layers import Dense, Lora, RMSNorm
from victor_jax.ops.attention import Implementation, attend_cache, attention
from victor_jax.ops.rope import inverse_frequencies, rotate, rotation
from victor_jax.sharding.activations import over_rows

Remat = Literal["none", "full", "dots"]
# What the backward pass finds stored, per layer: nothing but the layer's input, or its matrix products too.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
EMPTY = -1  # the position of a cache slot that holds nothing


@flax.struct.dataclass
class StageCache:
    """What the layers of one stage remember. Slots: the stage's length in prefill, then room for new tokens.

    Keys and values lie as the products of a new token read them, since it reads all and writes one slot.
    """

    keys: jax.Array  # [L, B, K, H, S]
    values: jax.Array  # [L, B, K, S, H]
    positions: jax.Array  # int32 [B, S], EMPTY where nothing stands
    prefilled: int = flax.struct.field(pytree_node=False)  # slots before the first new token


@flax.struct.dataclass
class View:
    """What every layer of a stage sees alike."""

    cosine: jax.Array  # float32 [B, T, 1, H / 2]
    sine: jax.Array
    # bool [B, T, S] of a full pass (None: causality says it all, since padding stands to the right); [B, S] of decoding
    mask: jax.Array | None
    slot: jax.Array | None  # decode: the cache slot of the new token; None: a full pass


Memory = tuple[jax.Array, jax.Array] | None  # keys and values of all layers of the stage


class LanguageAttention(nn.Module):
    config: LanguageConfig
    dtype: Any
    implementation: Implementation
    lora: Lora | None

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: Memory, layer: jax.Array, view: View
    ) -> tuple[jax.Array, Memory]:  # x [B, T, D]
        c = self.config

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * c.head_dim, c.qkv_bias, self.dtype, self.lora, name=name)(x)
            return y.reshape(*x.shape[:2], count, c.head_dim)

        q = rotate(heads("q", c.heads), view.cosine, view.sine)
        k = rotate(heads("k", c.kv_heads), view.cosine, view.sine)
        v = heads("v", c.kv_heads)
        memory = remember(memory, layer, view.slot, k, v)
        if view.slot is None:
            y = attention(q, k, v, causal=True, mask=view.mask, implementation=self.implementation)
        else:
            assert memory is not None, "decoding needs a cache"
            assert view.mask is not None, "decoding needs to know which slots are filled"
            keys, values = (jax.lax.dynamic_index_in_dim(m, layer, keepdims=False) for m in memory)
            y = attend_cache(q, keys, values, view.mask)
        y = y.reshape(*x.shape[:2], c.heads * c.head_dim)
        return Dense(c.width, False, self.dtype, self.lora, name="o")(y), memory


def remember(memory: Memory, layer: jax.Array, slot: jax.Array | None, k: jax.Array, v: jax.Array) -> Memory:
    """The memory with k and v [B, T, K, H] of `layer` written from `slot` on, in place once compiled."""
    if memory is None:
        return None
    (keys, values), slot = memory, jnp.int32(0) if slot is None else slot
    k, v = k.transpose(0, 2, 3, 1)[None], v.transpose(0, 2, 1, 3)[None]
    return (
        jax.lax.dynamic_update_slice(keys, k.astype(keys.dtype), (layer, 0, 0, 0, slot)),
        jax.lax.dynamic_update_slice(values, v.astype(values.dtype), (layer, 0, 0, slot, 0)),
    )


class LanguageMLP(nn.Module):
    width: int
    dtype: Any
    lora: Lora | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        gate = Dense(self.width, False, self.dtype, self.lora, name="gate")(x)
        up = Dense(self.width, False, self.dtype, self.lora, name="up")(x)
        return Dense(x.shape[-1], False, self.dtype, self.lora, name="down")(jax.nn.silu(gate) * up)


class LanguageLayer(nn.Module):
    config: LanguageConfig
    dtype: Any
    implementation: Implementation
    lora: Lora | None

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Memory], layer: jax.Array, view: View
    ) -> tuple[tuple[jax.Array, Memory], None]:  # the form that nn.scan wants
        x, memory = carry
        x, c = over_rows(x), self.config
        y = RMSNorm(c.norm_eps, name="norm1")(x)
        y, memory = LanguageAttention(c, self.dtype, self.implementation, self.lora, name="attention")(
            y, memory, layer, view
        )
        x = x + y
        y = RMSNorm(c.norm_eps, name="norm2")(x)
        x = x + LanguageMLP(c.mlp_width, self.dtype, self.lora, name="mlp")(y)
        return (over_rows(x), memory), None


class LanguageTower(nn.Module):
    config: LanguageConfig
    plan: Plan
    dtype: Any
    implementation: Implementation
    remat: Remat = "none"
    lora: Lora | None = None

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocabulary, c.width))
        self.stages = [self._stage(layers) if layers else None for layers in self.plan.stages]
        self.norm = RMSNorm(c.norm_eps)
        if not c.tied_embeddings:
            self.head = self.param("head", nn.initializers.normal(0.02), (c.width, c.vocabulary))

    def _stage(self, layers: int) -> nn.Module:
        layer = LanguageLayer
        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=layers,
        )
        return scanned(self.config, self.dtype, self.implementation, self.lora)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int32 [B, T] -> [B, T, D]."""
        return self.embedding.astype(self.dtype)[ids]

    def __call__(
        self, stream: cut.Stream, lengths: tuple[int, ...], room: int | None = None
    ) -> tuple[cut.Stream, list[StageCache]]:
        """A full pass through the plan -> the stream at the top, `lengths[-1]` long, and the caches.

        `room` is how many new tokens the caches shall hold; None keeps no caches.
        """
        caches = []
        for i, length in enumerate(lengths):
            if i > 0:
                stream = cut.apply(self.plan.cuts[i - 1], length, stream)
            cache = None if room is None else self._empty_cache(i, stream, room)
            memory = (cache.keys, cache.values) if cache else None
            x, memory = self._run(i, stream.x, memory, self._view(stream.positions))
            stream = replace(stream, x=x)
            if cache and memory:
                caches.append(replace(cache, keys=memory[0], values=memory[1]))
        return replace(stream, x=self.norm(stream.x)), caches

    def decode(self, x: jax.Array, caches: list[StageCache], step: jax.Array) -> tuple[jax.Array, list[StageCache]]:
        """x [B, 1, D] of the new token number `step` -> its state at the top [B, 1, D], the caches with it."""
        grown = []
        for i, cache in enumerate(caches):
            slot = cache.prefilled + step
            position = cache.positions.max(axis=1, keepdims=True) + 1
            seen = jax.lax.dynamic_update_slice(cache.positions, position, (0, slot))
            mask = (seen != EMPTY) & self._in_window(position, seen)
            view = View(*self._rotation(position), mask=mask, slot=slot)
            x, memory = self._run(i, x, (cache.keys, cache.values), view)
            assert memory is not None
            grown.append(replace(cache, keys=memory[0], values=memory[1], positions=seen))
        return self.norm(x), grown

    def logits(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> float32 [B, T, W]."""
        return jnp.einsum("BTD,DW->BTW", x, self.head_kernel(), preferred_element_type=jnp.float32)

    def head_kernel(self) -> jax.Array:
        """[D, W] in the compute dtype."""
        head = self.embedding.T if self.config.tied_embeddings else self.head
        return head.astype(self.dtype)

    def _run(self, stage: int, x: jax.Array, memory: Memory, view: View) -> tuple[jax.Array, Memory]:
        layers = self.stages[stage]
        if layers is None:
            return x, memory
        with jax.named_scope(f"stage_{stage}"):
            (x, memory), _ = layers((x, memory), jnp.arange(self.plan.stages[stage]), view)
        return x, memory

    def _view(self, positions: jax.Array) -> View:
        cosine, sine = self._rotation(positions)
        window = self.config.sliding_window
        if window is None or positions.shape[1] <= window:  # no two positions are further apart
            return View(cosine, sine, mask=None, slot=None)
        near = self._in_window(positions[:, :, None], positions[:, None, :])
        return View(cosine, sine, mask=near, slot=None)

    def _in_window(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Sliding windows are measured in RoPE positions, so that a cut does not widen them."""
        window = self.config.sliding_window
        return jnp.ones_like(key, bool) if window is None else key > query - window

    def _rotation(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rotation(positions, inverse_frequencies(self.config.rope, self.config.head_dim))

    def _empty_cache(self, stage: int, stream: cut.Stream, room: int) -> StageCache:
        c, (rows, length) = self.config, stream.kinds.shape
        heads = (self.plan.stages[stage], rows, c.kv_heads)
        keys = jnp.zeros((*heads, c.head_dim, length + room), self.dtype)
        values = jnp.zeros((*heads, length + room, c.head_dim), self.dtype)
        stand = jnp.where(stream.kinds == Kind.PADDING, EMPTY, stream.positions)
        stand = jnp.pad(stand, ((0, 0), (0, room)), constant_values=EMPTY)
        return StageCache(keys, values, stand, prefilled=length)
