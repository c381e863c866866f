"""FLOPs of any plan in closed form, of a forward pass and of a training step; bytes of decoding.

What is counted:

* FLOPs of matrix products, two for each multiplication with its addition. Norms, softmax, RoPE, activation functions
  and gathers are left out, the look-up of registers too, which is a product: together they stay far below 1 % at
  these widths. So is what a compressor and a method's own steps compute, which may be more.
* Causal attention in full, query times key, whatever a kernel skips; `causal="blocks"` counts what our "xla" attention
  computes (half, and the rest of the blocks on the diagonal), `causal="half"` the triangle with its diagonal, the least
  that any kernel must compute. A sliding window is counted like full attention.
* Of a training step, what the backward pass computes again apart from the rest: leave it out for the share of peak
  called MFU, add it for the one called HFU.
"""

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from victor_jax.models.vision import stage_lengths
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import causal_blocks

Causal = Literal["full", "blocks", "half"]
ADAPTERS = ("/lora_a", "/lora_b")


@dataclass(frozen=True)
class Work:
    """The static shapes of one batch."""

    rows: int
    lengths: tuple[int, ...]  # positions per row in each stage of the plan
    images: int  # of all rows; 0: text only, and the vision tower does not run
    head: int  # positions per row whose logits are computed: 1 of a prompt

    @classmethod
    def of_loss(cls, rows: int, lengths: tuple[int, ...], images: int, chunk: int) -> "Work":
        """Of a training batch: logits of every position at the top, in whole chunks."""
        chunk = min(chunk, lengths[-1])
        return cls(rows, lengths, images, head=-(-lengths[-1] // chunk) * chunk)


@dataclass(frozen=True)
class StepCost:
    model_flops: int
    recomputed: int = 0  # FLOPs that the backward pass repeats

    @property
    def flops(self) -> int:
        return self.model_flops + self.recomputed


def forward(module: VLMModule, work: Work, causal: Causal = "full") -> int:
    """One pass; keeping its caches computes nothing."""
    config, sizes = module.config, _sizes(module)
    positions, patches = config.vision.patches + 1, config.vision.patches
    kernels, patch = _sum(sizes, "vision/stages_", "/kernel"), _sum(sizes, "vision/patch_embedding/kernel")
    layers = sum(stage_lengths(config, module.method.compressor))
    attention = layers * 4 * positions**2 * config.vision.width
    vision = work.images * (2 * patches * patch + 2 * positions * kernels + attention)
    tokens = work.images * module.method.tokens_per_image(config)
    language = sum(
        2 * work.rows * length * _sum(sizes, f"language/stages_{i}_", "/kernel", *ADAPTERS)
        + _attention(module, i, work, causal)
        for i, length in enumerate(work.lengths)
    )
    return vision + 2 * tokens * _sum(sizes, "projector/", "/kernel") + language + _head(module, work)


def training_step(module: VLMModule, work: Work, trained: Collection[str], causal: Causal = "full") -> StepCost:
    """Forward and backward. `trained`: of projector, compression, language; adapters always. The vision tower is
    frozen."""
    sizes, through = _sizes(module), forward(module, work, causal)
    language, projector = "language" in trained, "projector" in trained and work.images > 0
    own = "compression" in trained and any(path.startswith("compression/") for path in sizes)
    # Whether anything below the top layer learns. If so every layer passes gradients down, frozen or not.
    if not (language or projector or own or module.lora):
        return StepCost(through)

    backward = _head(module, work) * (1 + language)
    recomputed = _head(module, work)  # the loss computes its logits again, chunk by chunk
    for i, length in enumerate(work.lengths):
        stage, tokens = f"language/stages_{i}_", 2 * work.rows * length
        kernels, adapters = _sum(sizes, stage, "/kernel"), _sum(sizes, stage, *ADAPTERS)
        attention = _attention(module, i, work, causal)
        # Gradients of activations always, of what trains besides.
        backward += tokens * (kernels + 2 * adapters + kernels * language) + 2 * attention
        if module.remat == "full":  # but for the last product, which only the layer's output needs
            last = _sum(sizes, stage, "mlp/down/kernel", "mlp/down/lora_b")
            recomputed += tokens * (kernels + adapters - last) + attention
        elif module.remat == "dots":  # products of weights are stored
            recomputed += attention
    if projector:  # nobody asks for the gradient of the first kernel's input: it comes from the frozen tower
        tokens = work.images * module.method.tokens_per_image(module.config)
        every, first = _sum(sizes, "projector/", "/kernel"), _sum(sizes, "projector/linear_1/kernel")
        backward += 2 * tokens * (2 * every - first)
    return StepCost(through + backward, recomputed)


def decode(module: VLMModule, rows: int, slots: tuple[int, ...]) -> int:
    """A new token for each row, which sees `slots` per row in each stage."""
    c, stages = module.config.language, module.method.plan.stages
    weights = _sum(_sizes(module), "language/", "/kernel") + c.width * c.vocabulary
    pairs = sum(layers * count for layers, count in zip(stages, slots, strict=True))
    return 2 * rows * (weights + 2 * pairs * c.heads * c.head_dim)


def decode_bytes(module: VLMModule, rows: int, slots: tuple[int, ...]) -> int:
    """What a new token for each row moves through memory at the least: each weight and the caches, with `slots` per
    row in each stage, are read, one slot is written."""
    c = module.config.language
    weights = _sum(_sizes(module), "language/", "/kernel") + c.width * c.vocabulary
    return jnp.dtype(module.dtype).itemsize * weights + cache_bytes(module, rows, tuple(n + 1 for n in slots))


def cache_bytes(module: VLMModule, rows: int, slots: tuple[int, ...]) -> int:
    """Keys and values, with `slots` per row in each stage."""
    c, stages = module.config.language, module.method.plan.stages
    numbers = sum(layers * count for layers, count in zip(stages, slots, strict=True))
    return 2 * rows * numbers * c.kv_heads * c.head_dim * jnp.dtype(module.dtype).itemsize


@functools.cache
def _sizes(module: VLMModule) -> dict[str, int]:
    """How many numbers each parameter has; those of a stage are all its layers'."""
    return {path: math.prod(leaf.shape) for path, leaf in parameters(module).items()}


def _sum(sizes: dict[str, int], start: str, *ends: str) -> int:
    return sum(size for path, size in sizes.items() if path.startswith(start) and path.endswith(ends or ""))


def _attention(module: VLMModule, stage: int, work: Work, causal: Causal) -> int:
    """Scores and weighted values in all layers of a stage."""
    c, length = module.config.language, work.lengths[stage]
    pairs = {
        "full": length * length,
        "blocks": sum((end - start) * end for start, end in causal_blocks(length)),
        "half": length * (length + 1) // 2,
    }[causal]
    return 4 * module.method.plan.stages[stage] * work.rows * pairs * c.heads * c.head_dim


def _head(module: VLMModule, work: Work) -> int:
    return 2 * work.rows * work.head * module.config.language.width * module.config.language.vocabulary
