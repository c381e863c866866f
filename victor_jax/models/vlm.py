"""The whole model as composition: vision tower, projector, registers, staged language tower.

pixels -> vision -> projector -> visual tokens
[text, visual tokens, registers, text …] -> stage, cut, stage -> logits of the text positions
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression import cut
from victor_jax.compression.plan import Compression, Kind
from victor_jax.models.config import VLMConfig
from victor_jax.models.language import LanguageTower, Remat, StageCache
from victor_jax.models.layers import Lora
from victor_jax.models.projector import Projector
from victor_jax.models.sequence import Sequence
from victor_jax.models.vision import VisionTower
from victor_jax.ops.attention import Implementation
from victor_jax.ops.losses import IGNORE, cross_entropy
from victor_jax.sharding.activations import over_rows

REGISTER_STD = 0.02  # the paper does not say; this is the language tower's own embedding scale


class Own(nn.Module):
    """A method's own parameters."""

    registers_per_image: int
    width: int

    def setup(self) -> None:
        if self.registers_per_image:
            shape = (self.registers_per_image, self.width)
            self.registers = self.param("registers", nn.initializers.normal(REGISTER_STD), shape)


class VLMModule(nn.Module):
    config: VLMConfig
    compression: Compression
    dtype: Any = jnp.float32
    implementation: Implementation = "xla"
    remat: Remat = "none"
    lora: Lora | None = None

    def setup(self) -> None:
        c = self.config
        self.vision = VisionTower(c.vision, c.feature_levels, c.keep_class_token, self.dtype, self.implementation)
        self.projector = Projector(c.projector, c.language.width, self.dtype)
        self.language = LanguageTower(
            c.language, self.compression.plan, self.dtype, self.implementation, self.remat, self.lora
        )
        self.own = Own(self.compression.registers, c.language.width, name="compression")

    def visual_tokens(self, pixels: jax.Array, slots: jax.Array | None, rows: int) -> jax.Array:
        """pixels [I, 3, size, size] -> [B, V, D], row by row.

        slots int32 [B, images per row] says which image stands where; None: equally many in each row, in order.
        """
        with jax.named_scope("vision"):
            tokens = self.projector(self.vision(pixels.astype(self.dtype)))
        if slots is not None:
            tokens = tokens[slots]
        return over_rows(tokens.reshape(rows, -1, tokens.shape[-1]))

    def embed(self, sequence: Sequence, visual: jax.Array | None) -> jax.Array:
        """Each position's input state [B, T, D], drawn from the source that its kind names."""

        def of(kind: Kind) -> tuple[jax.Array, jax.Array]:
            here = sequence.kinds == kind
            return here[..., None], jnp.where(here, sequence.index, 0)

        _, ids = of(Kind.TEXT)
        x = self.language.embed(ids)
        if visual is not None:
            here, which = of(Kind.VISUAL)
            x = jnp.where(here, cut.take(visual, which), x)
        if self.compression.registers:
            here, which = of(Kind.REGISTER)
            x = jnp.where(here, self.own.registers.astype(self.dtype)[which], x)
        return over_rows(x)

    def run(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        room: int | None = None,
    ) -> tuple[cut.Stream, list[StageCache]]:
        """A full pass -> the stream at the top, and the caches (see LanguageTower)."""
        rows = sequence.kinds.shape[0]
        visual = None if pixels is None else self.visual_tokens(pixels, slots, rows)
        x = self.embed(sequence, visual)
        origin = jnp.broadcast_to(jnp.arange(x.shape[1])[None], sequence.kinds.shape)
        stream = cut.Stream(x, sequence.kinds, sequence.positions, origin)
        return self.language(stream, lengths, room)

    def __call__(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        text_length: int,
    ) -> jax.Array:
        """float32 [B, text_length, W]: logits of each row's text positions in their order, then zeros."""
        top, _ = self.run(sequence, pixels, slots, lengths)
        order = cut.survivors(top.kinds == Kind.TEXT, text_length)
        is_text = cut.take(top.kinds, order) == Kind.TEXT
        return jnp.where(is_text[..., None], self.language.logits(cut.take(top.x, order)), 0.0)

    def loss(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,  # [B * images per row, 3, size, size]
        targets: jax.Array,  # int32 [B, T]: the id that each position must predict, IGNORE elsewhere
        lengths: tuple[int, ...],
        chunk: int,
    ) -> tuple[jax.Array, jax.Array]:
        """float32 [B] summed negative log-likelihood of each row, int32 [B] supervised positions of it.

        A position that a cut ends takes its target with it (VTW: the token right after the image).
        """
        top, _ = self.run(sequence, pixels, None, lengths)
        targets = jnp.where(top.kinds == Kind.PADDING, IGNORE, cut.take(targets, top.origin))
        return cross_entropy(top.x, self.language.head_kernel(), targets, chunk)

    def prefill(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        room: int,
    ) -> tuple[jax.Array, list[StageCache]]:
        """float32 [B, W]: logits after each row's last position, and the caches with room for new tokens."""
        top, caches = self.run(sequence, pixels, slots, lengths, room)
        last = (top.kinds != Kind.PADDING).sum(axis=1, keepdims=True) - 1
        return self.language.logits(cut.take(top.x, last))[:, 0], caches

    def decode(self, token: jax.Array, caches: list[StageCache], step: jax.Array) -> tuple[jax.Array, list[StageCache]]:
        """token int32 [B], the new token number `step` -> float32 [B, W] logits after it, and the caches."""
        x, caches = self.language.decode(self.language.embed(token[:, None]), caches, step)
        return self.language.logits(x)[:, 0], caches


def abstract_params(module: VLMModule) -> dict:
    """The parameter tree as shapes, float32; nothing is computed."""
    config = module.config
    pixels = jax.ShapeDtypeStruct((1, 3, config.vision.image_size, config.vision.image_size), np.float32)
    kinds = np.full((1, 8), Kind.TEXT, np.int32)
    lengths = module.compression.plan.lengths(kinds)
    one = jax.ShapeDtypeStruct((1, 8), np.int32)
    slots = jax.ShapeDtypeStruct((1, 1), np.int32)
    return jax.eval_shape(
        lambda pixels, sequence, slots: module.init(jax.random.key(0), sequence, pixels, slots, lengths, text_length=8),
        pixels,
        Sequence(one, one, one),
        slots,
    )["params"]
