"""The shapes that benchmarks run at, and random numbers to fill them."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.analysis.flops import Causal
from victor_jax.compression.plan import Size
from victor_jax.inference.arrays import encoded_rows
from victor_jax.models.config import VisionConfig, VLMConfig
from victor_jax.models.sequence import Batch, kind_counts, lay_out
from victor_jax.models.sizes import SIZES, llava
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import Choice, Implementation, choose
from victor_jax.ops.losses import IGNORE

TEXT_BEFORE = 35  # text tokens before the image: the system prompt of LLaVA-1.5
WORDS = range(3, 900)  # token ids that stand for text

Params = dict[str, jax.Array]  # by path


def small(width: int, layers: int, vision_layers: int, image_size: int) -> VLMConfig:
    """LLaVA-1.5 with fewer heads and words: heads of 128 over heads of 64, one quarter of the width in the tower."""
    tower = VisionConfig(width // 4, width, vision_layers, width // 256, image_size, 14, "quick_gelu", 1e-5)
    config = llava(width, 43 * width // 16, layers, tower, head_dim=128)
    return replace(config, image_token=1000, pad_token=1001, language=replace(config.language, vocabulary=1002))


@dataclass(frozen=True)
class Preset:
    config: VLMConfig
    dtype: str
    attention: Choice
    repeats: int
    in_turn: bool  # all compressions in memory at once and run in turn; else, to train, one after the other
    sizes: tuple[int, int]  # of the matrices of machine.limits
    new_tokens: tuple[int, int] = (2, 128)  # of a short and of a long answer


PRESETS = {
    # LLaVA-1.5's proportions in small: 24 and 32 layers, 576 visual tokens.
    "cpu": Preset(small(256, 32, 24, 336), "float32", "auto", repeats=3, in_turn=True, sizes=(2048, 8192)),
    "7b": Preset(SIZES["7b"], "bfloat16", "auto", repeats=3, in_turn=False, sizes=(8192, 32768)),
}


def kernel(preset: Preset) -> Implementation:
    """What the preset's attention means on this machine."""
    platform, heads = jax.devices()[0].platform, preset.config.head_dims
    return choose(preset.attention, platform=platform, dtype=preset.dtype, head_dims=heads)


def counted(attention: Implementation) -> Causal:
    """How much of causal attention a kernel computes, and a count of its FLOPs must hold."""
    return "blocks" if attention == "xla" else "half"


def random_params(module: VLMModule, have: Params) -> Params:
    """Norm scales are 1, all else is noise and small: activations stay finite. Arrays in `have` that fit are shared:
    several compressions of one large model need not be held several times."""
    leaves = parameters(module)
    shared = {path: have[path] for path, leaf in leaves.items() if path in have and have[path].shape == leaf.shape}

    def draw() -> Params:
        missing = {path: leaf.shape for path, leaf in leaves.items() if path not in shared}
        drawn = {path: _noise(shape, seed) for seed, (path, shape) in enumerate(missing.items())}
        return {
            path: (jnp.ones_like(noise) if path.endswith("scale") else noise).astype(module.dtype)
            for path, noise in drawn.items()
        }

    return shared | jax.jit(draw)()


def _noise(shape: tuple[int, ...], seed: int) -> jax.Array:
    """Hashed indices: jax.random would compile for longer than the benchmark of a small model runs."""
    bits = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + jnp.uint32(seed * 0x9E3779B9 % 2**32)
    for factor in (0x7FEB352D, 0x846CA68B):
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    return (bits >> 8).astype(jnp.float32) * (0.07 / 2**24) - 0.035  # uniform, of standard deviation 0.02


def prompts(config: VLMConfig, rows: int, text: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and pixels in the Hugging Face convention: one image in `text` tokens."""
    rng, size = np.random.default_rng(0), config.vision.image_size
    words = rng.integers(WORDS.start, min(WORDS.stop, config.image_token), (rows, text))
    image = np.full((rows, config.features_per_image), config.image_token)
    ids = np.concatenate([words[:, :TEXT_BEFORE], image, words[:, TEXT_BEFORE:]], axis=1)
    return ids, rng.normal(size=(rows, 3, size, size)).astype(np.float32)


def batch_of(module: VLMModule, rows: int, text: int, supervised: bool) -> tuple[Batch, tuple[Size, ...]]:
    """Such rows as the programs read them, all of their text supervised or none, and the static sizes of the plan."""
    method, (ids, pixels) = module.method, prompts(module.config, rows, text)
    encoded = encoded_rows(ids, None, module.config, method.tokens_per_image(module.config))
    if supervised:
        encoded = [replace(row, targets=np.where(row.ids < 0, IGNORE, row.ids)) for row in encoded]
    sequence, targets = lay_out(encoded, method.registers)
    as_bytes = (127 + 40 * pixels).clip(0, 255).astype(np.uint8)
    return Batch(sequence, targets, as_bytes[:, None]), method.plan.sizes(kind_counts(encoded, method.registers))
