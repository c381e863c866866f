"""FLOPs and bytes of any plan in closed form: forward, prefill, decode, and a training step.

What is counted:

* FLOPs of matrix products, two for each multiplication with its addition. Norms, softmax, RoPE, activation functions
  and gathers are left out: together they stay far below 1 % at these widths.
* Causal attention in full, query times key, whatever a kernel skips; `causal="blocks"` counts what our "xla" attention
  computes (half, and the rest of the blocks on the diagonal), `causal="half"` the triangle with its diagonal, the least
  that any kernel must compute. A sliding window is counted like full attention.
* Bytes that must cross the device's memory at the least: each weight once per pass, caches as they are written and
  read, what the backward pass finds stored, gradients and optimizer state. All devices together.
* Recomputation in the backward pass belongs to the total, and stands apart as well: leave it out for the share of
  peak called MFU, keep it for the one called HFU.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from victor_jax.models.config import VisionConfig, VLMConfig
from victor_jax.models.language import Remat
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import causal_blocks

Causal = Literal["full", "blocks", "half"]


@dataclass(frozen=True)
class Cost:
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Parts:
    vision: Cost
    projector: Cost
    stages: tuple[Cost, ...]
    head: Cost
    update: Cost = Cost()  # of a training step: gradients, optimizer state and parameters

    @property
    def total(self) -> Cost:
        return sum((self.vision, self.projector, *self.stages, self.head), self.update)


@dataclass(frozen=True)
class Work:
    """The static shapes of one batch."""

    rows: int
    lengths: tuple[int, ...]  # positions per row in each stage of the plan
    images: int  # of all rows; 0: text only, and the vision tower does not run
    head: int  # positions per row whose logits are computed

    @classmethod
    def of_loss(cls, rows: int, lengths: tuple[int, ...], images: int, chunk: int) -> "Work":
        """Of a training batch: logits of every position at the top, in whole chunks."""
        chunk = min(chunk, lengths[-1])
        return cls(rows, lengths, images, head=-(-lengths[-1] // chunk) * chunk)


@dataclass(frozen=True)
class Bytes:
    """Of one number, as it is kept."""

    compute: int = 2  # activations, caches, frozen weights
    trained: int = 4  # trained weights
    moment: int = 4  # each of the optimizer's two


@dataclass(frozen=True)
class Training:
    """What a step trains and how it keeps its activations."""

    trained: Collection[str]  # of projector, compression, language
    remat: Remat = "full"
    lora_rank: int = 0
    head_recomputed: bool = True  # a loss in chunks computes its logits again


@dataclass(frozen=True)
class StepCost:
    parts: Parts
    recomputed: int  # FLOPs among them that the backward pass repeats

    @property
    def model_flops(self) -> int:
        return self.parts.total.flops - self.recomputed


@dataclass(frozen=True)
class _Linear:
    """A weight [inputs, outputs] of a layer."""

    name: str
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        return self.inputs * self.outputs

    def low_rank(self, rank: int) -> int:
        return rank * (self.inputs + self.outputs)


def forward(
    module: VLMModule, work: Work, *, causal: Causal = "full", kept: Bytes = Bytes(), lora_rank: int = 0
) -> Parts:
    """One full pass without caches."""
    config, plan, c = module.config, module.method.plan, module.config.language
    per_layer = sum(x.size + x.low_rank(lora_rank) for x in _linears(config))
    stages = []
    for layers, length in zip(plan.stages, work.lengths, strict=True):
        flops = 2 * work.rows * length * per_layer + _attention(config, work.rows, length, causal)
        stages.append(Cost(layers * flops, layers * kept.compute * per_layer))
    head = Cost(2 * work.rows * work.head * c.width * c.vocabulary, kept.compute * c.width * c.vocabulary)
    return Parts(_vision(config, work.images, kept), _projector(module, work.images, kept), tuple(stages), head)


def prefill(module: VLMModule, work: Work, *, causal: Causal = "full", kept: Bytes = Bytes()) -> Parts:
    """A full pass that fills the caches and asks for the logits of each row's last position only."""
    parts, plan = forward(module, replace(work, head=1), causal=causal, kept=kept), module.method.plan
    written = (
        cache_bytes(module.config, layers, work.rows, n, kept)
        for layers, n in zip(plan.stages, work.lengths, strict=True)
    )
    return replace(
        parts, stages=tuple(stage + Cost(0, size) for stage, size in zip(parts.stages, written, strict=True))
    )


def decode(module: VLMModule, rows: int, slots: tuple[int, ...], *, kept: Bytes = Bytes()) -> Parts:
    """One new token for each row. `slots` are the cache slots per row that each stage attends to."""
    config, plan, c = module.config, module.method.plan, module.config.language
    parts = forward(module, Work(rows, (1,) * len(plan.stages), images=0, head=1), kept=kept)
    stages = []
    for stage, layers, count in zip(parts.stages, plan.stages, slots, strict=True):
        attention = 4 * rows * layers * (count - 1) * c.heads * c.head_dim  # one key is in the forward pass already
        stages.append(
            stage + Cost(attention, cache_bytes(config, layers, rows, count + 1, kept))
        )  # all read, one written
    return replace(parts, stages=tuple(stages))


def cache_bytes(config: VLMConfig, layers: int, rows: int, slots: int, kept: Bytes = Bytes()) -> int:
    """Keys and values of one stage."""
    c = config.language
    return 2 * kept.compute * layers * rows * slots * c.kv_heads * c.head_dim


def training_step(
    module: VLMModule,
    work: Work,
    training: Training,
    *,
    causal: Causal = "full",
    kept: Bytes = Bytes(),
) -> StepCost:
    """Forward, backward and update. The vision tower is frozen: it runs forward, and for text-only rows not at all."""
    trained, rank = training.trained, training.lora_rank
    config, plan = module.config, module.method.plan
    through = forward(module, work, causal=causal, kept=kept, lora_rank=rank)
    language = "language" in trained
    projector = "projector" in trained and work.images > 0
    own = "compression" in trained and any(path.startswith("compression/") for path in parameters(module))
    # Whether anything below the top layer learns. If so every layer passes gradients down, frozen or not.
    passes = language or projector or own or rank > 0
    if not passes:
        return StepCost(through, 0)

    n_rows, recomputed, stages = work.rows, 0, []
    for stage, layers, length in zip(through.stages, plan.stages, work.lengths, strict=True):
        again = _recomputed(config, training, n_rows, length, causal)
        back = _backward(config, training, n_rows, length, causal)
        stored = kept.compute * n_rows * length * _stored_width(config, training)
        weights = stage.bytes  # read a second time
        stages.append(stage + Cost(layers * (again + back), weights + layers * 2 * stored))
        recomputed += layers * again

    head = through.head
    head_again = head.flops if training.head_recomputed else 0
    head = head + Cost(head_again + head.flops * (1 + language), head.bytes)
    recomputed += head_again

    bridge = through.projector
    if projector:
        first, *rest = _projector_linears(config)
        tokens = 2 * work.images * module.method.tokens_per_image(config)
        # The first one's input comes from the frozen tower: nobody asks for its gradient.
        bridge = bridge + Cost(tokens * (first.size + 2 * sum(x.size for x in rest)), bridge.bytes)

    size = trained_parameters(module, training)
    # Gradient written and read, parameter and both moments read and written.
    update = Cost(0, size * 2 * (2 * kept.trained + 2 * kept.moment))
    return StepCost(Parts(through.vision, bridge, tuple(stages), head, update), recomputed)


def trained_parameters(module: VLMModule, training: Training) -> int:
    """How many numbers learn: of the parts that train, and of adapters."""
    config = module.config
    held = sum(
        math.prod(leaf.shape)
        for path, leaf in parameters(module).items()
        if path.split("/")[0] in training.trained and not path.endswith(("lora_a", "lora_b"))
    )
    return held + config.language.depth * sum(x.low_rank(training.lora_rank) for x in _linears(config))


def _linears(config: VLMConfig) -> tuple[_Linear, ...]:
    """Of one language layer."""
    c = config.language
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return (
        _Linear("q", c.width, queries),
        _Linear("k", c.width, keys),
        _Linear("v", c.width, keys),
        _Linear("o", queries, c.width),
        _Linear("gate", c.width, c.mlp_width),
        _Linear("up", c.width, c.mlp_width),
        _Linear("down", c.mlp_width, c.width),
    )


def _vision_linears(v: VisionConfig) -> tuple[_Linear, ...]:
    attention = tuple(_Linear(name, v.width, v.width) for name in "qkvo")
    return (*attention, _Linear("up", v.width, v.mlp_width), _Linear("down", v.mlp_width, v.width))


def _projector_linears(config: VLMConfig) -> tuple[_Linear, ...]:
    width = config.language.width
    first = _Linear("linear_1", config.vision.width * len(config.feature_levels), width)
    return (first,) if config.projector.kind == "linear" else (first, _Linear("linear_2", width, width))


def _patch(v: VisionConfig) -> _Linear:
    return _Linear("patch", 3 * v.patch_size**2, v.width)


def _attention(config: VLMConfig, rows: int, length: int, causal: Causal) -> int:
    """Scores and weighted values of one language layer."""
    pairs = {
        "full": length * length,
        "blocks": sum((end - start) * end for start, end in causal_blocks(length)),
        "half": length * (length + 1) // 2,
    }[causal]
    return 4 * rows * pairs * config.language.heads * config.language.head_dim


def _vision(config: VLMConfig, images: int, kept: Bytes) -> Cost:
    """The layers up to the highest level; those above are neither run nor held."""
    v = config.vision
    if not images:
        return Cost()
    positions, layers = v.patches + 1, max(config.feature_levels)
    per_layer = sum(x.size for x in _vision_linears(v))
    attention = 4 * positions * positions * v.width
    flops = 2 * v.patches * _patch(v).size + layers * (2 * positions * per_layer + attention)
    return Cost(images * flops, kept.compute * (_patch(v).size + layers * per_layer))


def _projector(module: VLMModule, images: int, kept: Bytes) -> Cost:
    """Of the visual tokens that a compressor leaves; its own arithmetic is not counted."""
    if not images:
        return Cost()
    size = sum(x.size for x in _projector_linears(module.config))
    return Cost(2 * images * module.method.tokens_per_image(module.config) * size, kept.compute * size)


def _backward(config: VLMConfig, training: Training, rows: int, length: int, causal: Causal) -> int:
    """Of one language layer: gradients of its activations always, of what trains in it besides."""
    tokens, linears = 2 * rows * length, _linears(config)
    adapters = sum(x.low_rank(training.lora_rank) for x in linears)
    kernels = sum(x.size for x in linears)
    learning = adapters + kernels * ("language" in training.trained)
    return tokens * (kernels + adapters + learning) + 2 * _attention(config, rows, length, causal)


def _recomputed(config: VLMConfig, training: Training, rows: int, length: int, causal: Causal) -> int:
    """Of one language layer. What only the layer's output needs is not computed again."""
    attention = _attention(config, rows, length, causal)
    if training.remat == "none":
        return 0
    if training.remat == "dots":  # products of weights are stored
        return attention
    *inner, down = _linears(config)
    again = sum(x.size + x.low_rank(training.lora_rank) for x in inner) + down.inputs * training.lora_rank
    return 2 * rows * length * again + attention


def _stored_width(config: VLMConfig, training: Training) -> int:
    """Numbers per position that one layer leaves for the backward pass, at the least."""
    *inner, _ = _linears(config)
    return config.language.width + (0 if training.remat == "full" else sum(x.outputs for x in inner))
