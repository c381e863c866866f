"""The shapes that benchmarks run at, and random numbers to fill them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from victor_jax.analysis.flops import Causal
from victor_jax.models.config import VisionConfig, VLMConfig
from victor_jax.models.sequence import Sequence, lay_out
from victor_jax.models.sizes import llava
from victor_jax.models.vlm import VLMModule, abstract_params
from victor_jax.ops.attention import Implementation

TEXT_BEFORE = 35  # text tokens before the image: the system prompt of LLaVA-1.5
WORDS = range(3, 900)  # token ids that stand for text

Params = dict[str, jax.Array]  # by path


def small(width: int, layers: int, vision_layers: int, image_size: int) -> VLMConfig:
    """LLaVA-1.5 with fewer heads and words: heads of 128 over heads of 64, one quarter of the width in the tower."""
    tower = VisionConfig(width // 4, width, vision_layers, width // 256, image_size, 14, "quick_gelu", 1e-5)
    config = llava(width, 43 * width // 16, layers, tower, head_dim=128)
    return replace(config, image_token=1000, pad_token=1001, language=replace(config.language, vocabulary=1002))


def counted(attention: Implementation) -> Causal:
    """How much of causal attention a kernel computes, and a count of its FLOPs must hold."""
    return "blocks" if attention == "xla" else "half"


def random_params(module: VLMModule, have: Params) -> Params:
    """Norm scales are 1, all else is noise and small: activations stay finite. Arrays in `have` that fit are shared:
    several compressions of one large model need not be held several times."""
    leaves = flatten_dict(abstract_params(module), sep="/")
    shared = {path: have[path] for path, leaf in leaves.items() if path in have and have[path].shape == leaf.shape}

    def draw() -> Params:
        missing = [path for path in leaves if path not in shared]
        return {
            path: _noise(path, leaves[path].shape, number).astype(module.dtype) for number, path in enumerate(missing)
        }

    return shared | jax.jit(draw)()


def _noise(path: str, shape: tuple[int, ...], seed: int) -> jax.Array:
    """Hashed indices: jax.random would compile for longer than the benchmark of a small model runs."""
    if path.endswith("scale"):
        return jnp.ones(shape)
    bits = jnp.uint32(seed * 0x9E3779B9 % 2**32)
    for axis, length in enumerate(shape):
        bits = bits * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    for factor in (0x7FEB352D, 0x846CA68B):
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    return (bits >> 8).astype(jnp.float32) * (0.07 / 2**24) - 0.035  # uniform, of standard deviation 0.02


def prompts(config: VLMConfig, batch: int, text: int) -> np.ndarray:
    """Token ids in the Hugging Face convention: one image in `text` tokens."""
    words = np.random.default_rng(0).integers(WORDS.start, WORDS.stop, (batch, text))
    image = np.full((batch, config.tokens_per_image), config.image_token)
    return np.concatenate([words[:, :TEXT_BEFORE], image, words[:, TEXT_BEFORE:]], axis=1)


def sequence_of(module: VLMModule, ids: np.ndarray) -> Sequence:
    config = module.config
    return lay_out(
        ids,
        np.ones_like(ids),
        image_token=config.image_token,
        tokens_per_image=config.tokens_per_image,
        registers=module.compression.registers,
    )
