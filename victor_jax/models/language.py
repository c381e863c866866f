"""The language tower: it follows a plan, each of whose stages of layers has one static length and caches of its own."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Kind, Layers, Plan, Score, Size
from victor_jax.compression.stream import Flow, Stream, Where, take
from victor_jax.models.config import LanguageConfig
from victor_jax.models.layers import Dense, Lora, RMSNorm, loop_lengths
from victor_jax.models.parameters import Normal, declare
from victor_jax.ops.attention import CACHE_AXES, CacheAxes, Implementation, attend_cache, attention
from victor_jax.ops.rope import inverse_frequencies, rotate, rotation
from victor_jax.sharding.mesh import over_rows

Remat = Literal["none", "full", "dots"]
# What the backward pass finds stored, per layer: nothing but the layer's input, or its matrix products too.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
EMPTY = -1  # the position of a free cache slot


@flax.struct.dataclass
class StageCache:
    """Keys and values of the layers of one stage. Slots: the stage's length in prefill, then room for new tokens.

    Laid out for decoding, which reads all slots and writes one.
    """

    keys: tuple[jax.Array, ...]  # of each loop over layers: [L, …], the other axes as the module's cache_axes say
    values: tuple[jax.Array, ...]
    positions: jax.Array  # int32 [B, S], EMPTY where the slot is free
    new: jax.Array  # int32 [B]: the position of the first new token
    prefilled: int = flax.struct.field(pytree_node=False)  # slots before the first new token


Caches = list[Any]  # of each step of the plan: a StageCache, what another step keeps for new tokens, or None


@flax.struct.dataclass
class View:
    """What all layers of a stage share."""

    cosine: jax.Array  # float32 [B, T, 1, H / 2]
    sine: jax.Array
    # bool [B, T, S] of a full pass (None: causality suffices, since padding is at the right); [B, S] of decoding
    mask: jax.Array | None
    slot: jax.Array | None = None  # decode: the cache slot of the new token; None: a full pass
    where: Where | None = None  # for a score


KeysValues = tuple[jax.Array, jax.Array] | None  # of all layers of a loop
State = TypeVar("State")
RunLayer = Callable[[jax.Array, View], jax.Array]  # x [B, T, D] -> [B, T, D]


class LanguageAttention(nn.Module):
    config: LanguageConfig
    dtype: Any
    implementation: Implementation
    lora: Lora | None
    score: Score | None
    cache_axes: CacheAxes

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: KeysValues, layer: jax.Array, view: View
    ) -> tuple[jax.Array, KeysValues, jax.Array | None]:
        """x [B, T, D] -> [B, T, D], the cache with this layer's keys and values, the score if one is asked for."""
        c = self.config

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * c.head_dim, c.qkv_bias, self.dtype, self.lora, name=name)(x)
            return y.reshape(*x.shape[:2], count, c.head_dim)

        q = rotate(heads("q", c.heads), view.cosine, view.sine)
        k = rotate(heads("k", c.kv_heads), view.cosine, view.sine)
        v = heads("v", c.kv_heads)
        cache = write(cache, layer, view.slot, k, v, self.cache_axes)
        score = None if self.score is None or view.where is None else self.score(q, k, view.where)
        if view.slot is None:
            y = attention(q, k, v, causal=True, mask=view.mask, implementation=self.implementation)
        else:
            assert cache is not None, "decoding needs a cache"
            assert view.mask is not None, "decoding needs to know which slots are filled"
            keys, values = (jax.lax.dynamic_index_in_dim(m, layer, keepdims=False) for m in cache)
            y = attend_cache(q, keys, values, view.mask, self.cache_axes)
        y = y.reshape(*x.shape[:2], c.heads * c.head_dim)
        out = Dense(c.width, False, self.dtype, self.lora, axes=("tensor", "fsdp"), name="o")
        return out(y), cache, score


def write(
    cache: KeysValues, layer: jax.Array, slot: jax.Array | None, k: jax.Array, v: jax.Array, axes: CacheAxes
) -> KeysValues:
    """The cache with k and v [B, S, K, H] of `layer` written from `slot` on, in place once compiled."""
    if cache is None:
        return None
    first = jnp.int32(0) if slot is None else slot

    def into(held: jax.Array, new: jax.Array, order: str) -> jax.Array:
        new = new.transpose(["BSKH".index(axis) for axis in order]).astype(held.dtype)
        start = [first if axis == "S" else 0 for axis in order]
        return jax.lax.dynamic_update_slice(held, new[None], (layer, *start))

    return into(cache[0], k, axes[0]), into(cache[1], v, axes[1])


class LanguageMLP(nn.Module):
    width: int
    dtype: Any
    lora: Lora | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        gate = Dense(self.width, False, self.dtype, self.lora, name="gate")(x)
        up = Dense(self.width, False, self.dtype, self.lora, name="up")(x)
        down = Dense(x.shape[-1], False, self.dtype, self.lora, axes=("tensor", "fsdp"), name="down")
        return down(jax.nn.silu(gate) * up)


class LanguageLayer(nn.Module):
    config: LanguageConfig
    dtype: Any
    implementation: Implementation
    lora: Lora | None
    score: Score | None
    cache_axes: CacheAxes

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, KeysValues], layer: jax.Array, view: View
    ) -> tuple[tuple[jax.Array, KeysValues], jax.Array | None]:  # the form that nn.scan wants
        x, cache = carry
        x, c = over_rows(x), self.config
        y = RMSNorm(c.norm_eps, name="norm1")(x)
        attend = LanguageAttention(
            c, self.dtype, self.implementation, self.lora, self.score, self.cache_axes, name="attention"
        )
        y, cache, score = attend(y, cache, layer, view)
        x = x + y
        y = RMSNorm(c.norm_eps, name="norm2")(x)
        x = x + LanguageMLP(c.mlp_width, self.dtype, self.lora, name="mlp")(y)
        return (over_rows(x), cache), score


class LanguageTower(nn.Module):
    config: LanguageConfig
    plan: Plan
    dtype: Any
    implementation: Implementation
    remat: Remat = "none"
    lora: Lora | None = None
    layers_per_loop: int | None = None
    cache_axes: CacheAxes = CACHE_AXES

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param("embedding", declare(Normal(0.02), "tensor", "fsdp"), (c.vocabulary, c.width))
        self.stages = [
            [
                self._loop(length, None if step.ahead else step.score)
                for length in loop_lengths(step.count, self.layers_per_loop)
            ]
            for step in self.plan.steps
            if isinstance(step, Layers)
        ]
        self.norm = RMSNorm(c.norm_eps)
        if not c.tied_embeddings:
            self.head = self.param("head", declare(Normal(0.02), "fsdp", "tensor"), (c.width, c.vocabulary))

    def _loop(self, length: int, score: Score | None) -> nn.Module:
        layer = LanguageLayer
        if self.remat != "none":
            # A loop keeps the two passes apart by itself; the compiler unrolls one of a single layer.
            layer = nn.remat(layer, prevent_cse=length == 1, policy=REMAT_POLICIES[self.remat])
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=length,
            check_constancy_invariants=False,  # nothing is broadcast out of it: traces the layer once
        )
        return scanned(self.config, self.dtype, self.implementation, self.lora, score, self.cache_axes)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int32 [B, T] -> [B, T, D], zeros where the vocabulary has no such id. Cast after the lookup, so that
        gradients are summed in the table's type."""
        return self.embedding.at[ids].get(mode="fill", fill_value=0).astype(self.dtype)

    def __call__(
        self,
        flow: Flow,
        sizes: tuple[Size, ...],
        own: nn.Module | None,
        room: int | None = None,
        steps: tuple[int, int | None] = (0, None),
    ) -> tuple[Flow, Caches]:
        """A full pass through the plan -> what is at the top, and what each step keeps for new tokens.

        `own` is what the method's steps learn; `room` is how many new tokens the caches shall hold, None keeps none.
        With `steps` only those from the first of the two to before the second are taken.
        """
        caches: Caches = []
        part, span = slice(*steps), flow.notes["index"].shape[1]  # no two RoPE positions are further apart
        stages = itertools.count(len(Plan(self.plan.steps[: part.start]).stages))
        for step, size in zip(self.plan.steps[part], sizes[part], strict=True):
            if isinstance(step, Layers):
                cache = None if room is None else self._empty_cache(step, flow, room)
                flow, cache = self._layers(next(stages), step, flow, cache, span)
            else:
                flow, cache = step.apply(flow, size, own)
            caches.append(cache)
        if part.stop is None:
            flow = replace(flow, stream=replace(flow.stream, x=self.norm(flow.stream.x)))
        return flow, caches

    def _layers(
        self, stage: int, step: Layers, flow: Flow, cache: StageCache | None, span: int
    ) -> tuple[Flow, StageCache | None]:
        stream = flow.stream
        view = self.view(stream, span, step.barred)
        if step.score is not None:
            prompt_end = jnp.argmax(stream.origin == flow.prompt_end[:, None], axis=1)
            notes = {name: take(note, stream.origin) for name, note in flow.notes.items()}
            where = Where(stream.kinds, stream.positions, prompt_end, notes, self.config.sliding_window)
            view = replace(view, where=where)
        x, cache, scores = self._run(stage, stream.x, cache, view)
        if step.score is not None and step.ahead:
            scores = self._ahead(stage + 1, x, view, step.score)
        return replace(flow, stream=replace(stream, x=x), scores=scores), cache

    def _ahead(self, stage: int, x: jax.Array, view: View, score: Score) -> jax.Array:
        """[1, B, …]: the score that the first layer of this stage would compute of x. No gradient passes through it.

        The compiler drops what that layer computes besides.
        """
        if self.is_initializing():  # its parameters are declared when it runs
            return jnp.zeros((1, *x.shape[:2]), jnp.float32)
        stacked = self.stages[stage][0].variables["params"]
        first = jax.tree.map(lambda leaf: leaf[0], stacked)
        _, scores = self._one_layer(*jax.lax.stop_gradient((first, x)), view, score)
        return scores[None]  # type: ignore[index]

    def walk(self, state: State, visit: Callable[[State, jax.Array, RunLayer], State]) -> State:
        """Up the tower layer by layer, for a pass that is no plan: visit(state, the layer's number, what runs it)."""
        first = 0
        for loop in itertools.chain.from_iterable(self.stages):

            def step(state: State, layer: tuple[jax.Array, Any]) -> tuple[State, None]:
                number, params = layer
                return visit(state, number, lambda x, view: self._one_layer(params, x, view)[0]), None

            stacked = loop.variables["params"]
            numbers = first + jnp.arange(len(jax.tree.leaves(stacked)[0]))
            state, _ = jax.lax.scan(step, state, (numbers, stacked))
            first += len(numbers)
        return state

    def _one_layer(
        self, params: Any, x: jax.Array, view: View, score: Score | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """A layer of these parameters -> x and its score."""
        layer = LanguageLayer(
            self.config, self.dtype, self.implementation, self.lora, score, self.cache_axes, parent=None
        )
        (x, _), found = layer.apply({"params": params}, (x, None), jnp.int32(0), view)
        return x, found  # type: ignore[return-value]

    def decode(
        self, x: jax.Array, caches: Caches, number: jax.Array, own: nn.Module | None
    ) -> tuple[jax.Array, Caches]:
        """x [B, 1, D] of the new token of this number -> its state at the top [B, 1, D], the caches with it."""
        grown, stages = list(caches), itertools.count()
        for i, (step, cache) in enumerate(zip(self.plan.steps, caches, strict=True)):
            if not isinstance(step, Layers):
                x = x if cache is None else step.decode(x, cache, own)
                continue
            slot = cache.prefilled + number
            position = (cache.new + number)[:, None]
            filled = jax.lax.dynamic_update_slice(cache.positions, position, (0, slot))
            mask = (filled != EMPTY) & self._in_window(position, filled)
            cache = replace(cache, positions=filled)
            x, grown[i], _ = self._run(next(stages), x, cache, View(*self._rotation(position), mask=mask, slot=slot))
        return self.norm(x), grown

    def logits(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> float32 [B, T, W]."""
        return jnp.einsum("BTD,DW->BTW", x, self.head_kernel(), preferred_element_type=jnp.float32)

    def head_kernel(self) -> jax.Array:
        """[D, W] in the compute dtype."""
        head = self.embedding.T if self.config.tied_embeddings else self.head
        return head.astype(self.dtype)

    def _run(
        self, stage: int, x: jax.Array, cache: StageCache | None, view: View
    ) -> tuple[jax.Array, StageCache | None, jax.Array | None]:
        """The layers of a stage, loop by loop -> x, the cache with their keys and values, their scores [L, …]."""
        loops, lengths = self.stages[stage], loop_lengths(self.plan.stages[stage], self.layers_per_loop)
        held: list[KeysValues] = [None] * len(loops)
        if cache is not None:
            held = list(zip(cache.keys, cache.values, strict=True))
        scores = []
        with jax.named_scope(f"stage_{stage}"):
            for i, (loop, length) in enumerate(zip(loops, lengths, strict=True)):
                (x, held[i]), score = loop((x, held[i]), jnp.arange(length), view)
                scores.append(score)
        if cache is not None:
            keys, values = zip(*held, strict=True)
            cache = replace(cache, keys=keys, values=values)
        return x, cache, None if scores[0] is None else jnp.concatenate(scores)

    def view(self, stream: Stream, span: int, barred: bool = False) -> View:
        """Of a full pass over positions that are less than `span` apart, gaps included."""
        positions, window, mask = stream.positions, self.config.sliding_window, None
        if window is not None and span > window:
            mask = self._in_window(positions[:, :, None], positions[:, None, :])
        if barred:
            may = (stream.kinds != Kind.TEXT)[:, :, None] | (stream.kinds != Kind.VISUAL)[:, None, :]
            mask = may if mask is None else mask & may
        return View(*self._rotation(positions), mask=mask)

    def _in_window(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Sliding windows are measured in RoPE positions, so that visual tokens that left do not widen them."""
        window = self.config.sliding_window
        return jnp.ones_like(key, bool) if window is None else key > query - window

    def _rotation(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rotation(positions, inverse_frequencies(self.config.rope, self.config.head_dim))

    def _empty_cache(self, step: Layers, flow: Flow, room: int) -> StageCache:
        c, stream = self.config, flow.stream
        rows, length = stream.kinds.shape
        sizes = {"B": rows, "K": c.kv_heads, "H": c.head_dim, "S": length + room}
        keys, values = (
            tuple(
                jnp.zeros((layers, *(sizes[axis] for axis in axes)), self.dtype)
                for layers in loop_lengths(step.count, self.layers_per_loop)
            )
            for axes in self.cache_axes
        )
        hidden = stream.kinds == Kind.PADDING
        if step.barred:  # new tokens are text
            hidden |= stream.kinds == Kind.VISUAL
        positions = jnp.where(hidden, EMPTY, stream.positions)
        positions = jnp.pad(positions, ((0, 0), (0, room)), constant_values=EMPTY)
        return StageCache(keys, values, positions, flow.new, prefilled=length)
