"""The whole model as composition: vision tower, compressor, projector, registers, language tower.

pixels -> vision -> (compressor) -> projector -> visual tokens
[text, visual tokens, registers, text …] -> the steps of a plan -> logits of the text positions
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from victor_jax.compression.choice import question_features
from victor_jax.compression.plan import Fork, Kind, Method, Plan, Size
from victor_jax.compression.stream import Flow, Seen, Stream, close_up, survivors, take
from victor_jax.models.config import VLMConfig
from victor_jax.models.language import Caches, LanguageTower, Remat
from victor_jax.models.layers import Lora
from victor_jax.models.parameters import Declared, Embedding, Normal, declare
from victor_jax.models.projector import Projector
from victor_jax.models.sequence import Batch, EncodedRow, Sequence, kind_counts, lay_out
from victor_jax.models.vision import VisionTower
from victor_jax.ops.attention import CACHE_AXES, CacheAxes, Implementation
from victor_jax.ops.images import normalise
from victor_jax.ops.losses import IGNORE, cross_entropy
from victor_jax.sharding.mesh import over_rows


def exact_where_asked(method: Callable[..., Any]) -> Callable[..., Any]:
    """float32 is float32 on every platform: by default GPUs and TPUs round the factors of its products."""

    @functools.wraps(method)
    def traced(self: "VLMModule", *args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
            return method(self, *args, **kwargs)

    return traced


class OwnParameters(nn.Module):
    """What a method brings along: registers, and whatever its compressor and its steps learn."""

    config: VLMConfig
    method: Method
    dtype: Any
    implementation: Implementation

    def setup(self) -> None:
        if self.method.registers:
            shape = (self.method.registers, self.config.language.width)
            word = self.method.word
            start = Normal(self.method.register_std) if word is None else Embedding(word)
            self.registers = self.param("registers", declare(start, nested=bool(self.method.draws)), shape)
        if self.method.compressor:
            self.compressor = self.method.compressor.module(self.config, self.dtype)
        own = self.method.own
        self.steps: Any = own(self.config, self.dtype, self.implementation) if own else None

    def compress(self, seen: Seen) -> tuple[jax.Array, jax.Array | None]:
        """[I, P, E] -> [I, R, E], and which of them are used, bool [I, R], where that is not all."""
        found = self.compressor(seen)
        return found if isinstance(found, tuple) else (found, None)


class VLMModule(nn.Module):
    config: VLMConfig
    method: Method
    dtype: Any = jnp.float32
    implementation: Implementation = "xla"
    remat: Remat = "none"
    lora: Lora | None = None
    layers_per_loop: int | None = None  # in both towers, see loop_lengths
    cache_axes: CacheAxes = CACHE_AXES

    def setup(self) -> None:
        c, kernels = self.config, (self.dtype, self.implementation)
        self.vision = VisionTower(c, self.method.compressor, *kernels, self.layers_per_loop)
        self.projector = Projector(c.projector, c.language.width, self.dtype)
        self.language = LanguageTower(
            c.language, self.method.plan, *kernels, self.remat, self.lora, self.layers_per_loop, self.cache_axes
        )
        self.compression = OwnParameters(c, self.method, *kernels)

    def under(self, plan: Plan) -> "VLMModule":
        """That runs this plan for all rows."""
        return self.clone(method=replace(self.method, plan=plan, fork=None))

    def visual_tokens(self, pixels: jax.Array, pictures: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        """The pixels of a batch and which picture each image is (see Batch) -> [B, V, D], and which of them are used,
        bool [B, V], where that is not all."""
        compressor, used = self.method.compressor, None
        with jax.named_scope("vision"):
            images = pixels.reshape(-1, *pixels.shape[-3:])
            images = normalise(images) if images.dtype == jnp.uint8 else images
            seen = self.vision(images.astype(self.dtype))
            if compressor and not compressor.after_projector:
                features, used = self.compression.compress(seen)
                seen = replace(seen, features=features)
            tokens = self.projector(seen.features)
            if compressor and compressor.after_projector:
                tokens, used = self.compression.compress(replace(seen, features=tokens))
        rows = len(pixels)
        if pictures is not None:
            rows, tokens, used = len(pictures), tokens[pictures], None if used is None else used[pictures]
        return over_rows(tokens.reshape(rows, -1, tokens.shape[-1])), None if used is None else used.reshape(rows, -1)

    def embed(self, sequence: Sequence, visual: jax.Array | None) -> jax.Array:
        """Each position's input state [B, T, D], taken from the source that its kind names."""

        def of(kind: Kind, elsewhere: int) -> tuple[jax.Array, jax.Array]:
            here = sequence.kinds == kind
            return here[..., None], jnp.where(here, sequence.index, elsewhere)

        # Other positions look up nothing: all of them at one entry would queue for its gradient.
        _, ids = of(Kind.TEXT, elsewhere=self.config.language.vocabulary)
        x = self.language.embed(ids)
        if visual is not None:
            here, which = of(Kind.VISUAL, elsewhere=0)
            x = jnp.where(here, take(visual, which), x)
        if registers := self.method.registers:
            here, which = of(Kind.REGISTER, elsewhere=registers)
            # A product, since every row adds to the gradient of the same few registers.
            chosen = jax.nn.one_hot(which, registers, dtype=jnp.float32) @ self.compression.registers
            x = jnp.where(here, chosen.astype(self.dtype), x)
        return over_rows(x)

    @exact_where_asked
    def bottom(self, batch: Batch) -> Flow:
        """What flows into the language tower."""
        sequence = batch.sequence
        visual, used = (None, None) if batch.pixels is None else self.visual_tokens(batch.pixels, batch.pictures)
        x = self.embed(sequence, visual)
        origin = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], sequence.kinds.shape)
        stream = Stream(x, sequence.kinds, sequence.positions, origin)
        if used is not None:
            is_visual = sequence.kinds == Kind.VISUAL
            stream = close_up(stream, ~is_visual | take(used, jnp.where(is_visual, sequence.index, 0)))
        answers = jnp.pad(batch.targets[:, :-1] != IGNORE, ((0, 0), (1, 0)))
        new = (stream.kinds != Kind.PADDING).sum(axis=1)
        notes = {"index": sequence.index, "kind": sequence.kinds, "answer": answers}
        return Flow(stream, sequence.prompt_end, new, notes=notes)

    @exact_where_asked
    def run(self, batch: Batch, sizes: tuple[Size, ...], room: int | None = None) -> tuple[Flow, Caches]:
        """A full pass -> what is at the top, and the caches (see LanguageTower)."""
        flow = self.bottom(batch)
        if self.is_initializing():  # what chooses plans declares its parameters too
            for fork in self.method.fork.forks if self.method.fork else ():
                self.compression.steps.choose(question_features(flow), fork.layers)
        return self.part(flow, sizes, room)

    @exact_where_asked
    def part(
        self, flow: Flow, sizes: tuple[Size, ...], room: int | None = None, steps: tuple[int, int | None] = (0, None)
    ) -> tuple[Flow, Caches]:
        """These steps of the plan."""
        return self.language(flow, sizes, self.compression.steps, room, steps)

    @exact_where_asked
    def choose(self, flow: Flow, fork: Fork) -> jax.Array:
        """int32 [B]: the branch by which each row goes on."""
        return self.compression.steps.choose(question_features(flow), fork.layers).argmax(axis=1)

    def __call__(self, batch: Batch, sizes: tuple[Size, ...], text_length: int) -> jax.Array:
        """float32 [B, text_length, W]: logits of each row's text positions in their order, then zeros."""
        return self.text_logits(self.run(batch, sizes)[0], text_length)

    @exact_where_asked
    def text_logits(self, flow: Flow, text_length: int) -> jax.Array:
        """Of what is at the top, as __call__ gives them."""
        top = flow.stream
        order = survivors(top.kinds == Kind.TEXT, text_length)
        is_text = take(top.kinds, order) == Kind.TEXT
        return jnp.where(is_text[..., None], self.language.logits(take(top.x, order)), 0.0)

    def loss(self, batch: Batch, sizes: tuple[Size, ...], chunk: int) -> tuple[jax.Array, jax.Array]:
        """float32 [B] summed negative log-likelihood of each row, int32 [B] supervised positions of it.

        A position that leaves takes its target with it: without registers, the token right after the image.
        """
        return self.loss_of(self.run(batch, sizes)[0], batch.targets, chunk)

    @exact_where_asked
    def loss_of(self, flow: Flow, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
        """Of what is at the top. targets int32 [B, T of the input]."""
        top = flow.stream
        targets = jnp.where(top.kinds == Kind.PADDING, IGNORE, take(targets, top.origin))
        return cross_entropy(top.x, self.language.head_kernel(), targets, chunk)

    def prefill(self, batch: Batch, sizes: tuple[Size, ...], room: int) -> tuple[jax.Array, Caches]:
        """float32 [B, W]: logits after each row's last position, and the caches with room for new tokens."""
        flow, caches = self.run(batch, sizes, room)
        return self.next_logits(flow), caches

    @exact_where_asked
    def next_logits(self, flow: Flow) -> jax.Array:
        """float32 [B, W]: of what is at the top, those after each row's last position."""
        last = (flow.stream.kinds != Kind.PADDING).sum(axis=1, keepdims=True) - 1
        return self.language.logits(take(flow.stream.x, last))[:, 0]

    @exact_where_asked
    def decode(self, token: jax.Array, caches: Caches, step: jax.Array) -> tuple[jax.Array, Caches]:
        """token int32 [B], the new token number `step` -> float32 [B, W] logits after it, and the caches."""
        x, caches = self.language.decode(self.language.embed(token[:, None]), caches, step, self.compression.steps)
        return self.language.logits(x)[:, 0], caches


def parameters(module: VLMModule) -> dict[str, Declared]:
    """Every parameter by path, as a float32 shape with its declaration; nothing is computed. Not to be changed: tracing
    7B in a loop per layer takes more than a second, so callers share one, whatever they compute in."""
    return _traced(VLMModule(module.config, module.method, lora=module.lora, layers_per_loop=module.layers_per_loop))


@functools.lru_cache(maxsize=16)
def _traced(module: VLMModule) -> dict[str, Declared]:
    size, method = module.config.vision.image_size, module.method
    row = EncodedRow(np.array([0, -200]), np.full(2, IGNORE), (method.tokens_per_image(module.config),))
    sequence, targets = lay_out([row], method.registers)
    batch = Batch(sequence, targets, np.zeros((1, 1, 3, size, size), np.uint8))
    sizes = method.plan.sizes(kind_counts([row], method.registers))
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, sizes, text_length=8))
    return flatten_dict(init["params"], sep="/", is_leaf=lambda _, leaf: isinstance(leaf, Declared))
