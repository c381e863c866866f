"""The whole model as composition: vision tower, projector, registers, staged language tower.

pixels -> vision -> projector -> visual tokens
[text, visual tokens, registers, text …] -> stage, cut, stage -> logits of the text positions
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from victor_jax.compression import cut
from victor_jax.compression.plan import Compression, Kind
from victor_jax.models.config import VLMConfig
from victor_jax.models.language import LanguageTower, StageCache
from victor_jax.models.projector import Projector
from victor_jax.models.sequence import Sequence
from victor_jax.models.vision import VisionTower
from victor_jax.ops.attention import Implementation

REGISTER_STD = 0.02  # the paper does not say; this is the language tower's own embedding scale


class VLMModule(nn.Module):
    config: VLMConfig
    compression: Compression
    dtype: Any = jnp.float32
    implementation: Implementation = "xla"

    def setup(self) -> None:
        c = self.config
        self.vision = VisionTower(c.vision, c.feature_levels, c.keep_class_token, self.dtype, self.implementation)
        self.projector = Projector(c.projector, c.language.width, self.dtype)
        self.language = LanguageTower(c.language, self.compression.plan, self.dtype, self.implementation)
        if self.compression.registers:
            shape = (self.compression.registers, c.language.width)
            self.registers = self.param("registers", nn.initializers.normal(REGISTER_STD), shape)

    def visual_tokens(self, pixels: jax.Array, slots: jax.Array) -> jax.Array:
        """pixels [I, 3, size, size], slots int32 [B, images per row] -> [B, V, D], row by row."""
        with jax.named_scope("vision"):
            tokens = self.projector(self.vision(pixels.astype(self.dtype)))
        tokens = tokens[slots]
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

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
            x = jnp.where(here, self.registers.astype(self.dtype)[which], x)
        return x

    def states(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        room: int | None = None,
    ) -> tuple[jax.Array, jax.Array, list[StageCache]]:
        """A full pass -> states and kinds at the top, and the caches (see LanguageTower)."""
        visual = None if pixels is None or slots is None else self.visual_tokens(pixels, slots)
        x = self.embed(sequence, visual)
        return self.language(x, sequence.kinds, sequence.positions, lengths, room)

    def __call__(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        text_length: int,
    ) -> jax.Array:
        """float32 [B, text_length, W]: logits of each row's text positions in their order, then zeros."""
        x, kinds, _ = self.states(sequence, pixels, slots, lengths)
        order = cut.survivors(kinds == Kind.TEXT, text_length)
        is_text = cut.take(kinds, order) == Kind.TEXT
        return jnp.where(is_text[..., None], self.language.logits(cut.take(x, order)), 0.0)

    def prefill(
        self,
        sequence: Sequence,
        pixels: jax.Array | None,
        slots: jax.Array | None,
        lengths: tuple[int, ...],
        room: int,
    ) -> tuple[jax.Array, list[StageCache]]:
        """float32 [B, W]: logits after each row's last position, and the caches with room for new tokens."""
        x, kinds, caches = self.states(sequence, pixels, slots, lengths, room)
        last = (kinds != Kind.PADDING).sum(axis=1, keepdims=True) - 1
        return self.language.logits(cut.take(x, last))[:, 0], caches

    def decode(self, token: jax.Array, caches: list[StageCache], step: jax.Array) -> tuple[jax.Array, list[StageCache]]:
        """token int32 [B], the new token number `step` -> float32 [B, W] logits after it, and the caches."""
        x, caches = self.language.decode(self.language.embed(token[:, None]), caches, step)
        return self.language.logits(x)[:, 0], caches
