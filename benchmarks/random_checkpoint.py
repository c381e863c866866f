"""python -m benchmarks.random_checkpoint DIR --size={7b,13b,small}: a LLaVA-1.5-shaped checkpoint of random bfloat16.

The Hugging Face layout, written tensor by tensor: 13.5 GB for 7b take a few hundred MB of memory.
"""

import argparse
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import Rope
from victor_jax.weights.checkpoint import Checkpoint, expected_shapes
from victor_jax.weights.tensors import Index, Tensor
from victor_jax.weights.write import write_checkpoint

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def llava(width: int, mlp_width: int, depth: int, vision: VisionConfig) -> VLMConfig:
    """LLaVA-1.5 as Hugging Face exports it: vocabulary padded to 32064, image token 32000."""
    language = LanguageConfig(
        family="llama",
        width=width,
        mlp_width=mlp_width,
        depth=depth,
        heads=width // 128,
        kv_heads=width // 128,
        head_dim=128,
        vocabulary=32064,
        norm_eps=1e-5,
        rope=Rope(10000.0),
        qkv_bias=False,
        tied_embeddings=False,
        sliding_window=None,
        max_positions=4096,
    )
    return VLMConfig(
        vision=vision,
        projector=ProjectorConfig("mlp", bias=True),
        language=language,
        feature_levels=(vision.depth - 1,),
        keep_class_token=False,
        image_token=32000,
        pad_token=32001,
        end_tokens=(2,),
    )


CLIP_L_336 = VisionConfig(1024, 4096, 24, 16, 336, 14, "quick_gelu", 1e-5)
SIZES = {
    "7b": llava(4096, 11008, 32, CLIP_L_336),
    "13b": llava(5120, 13824, 40, CLIP_L_336),
    "small": llava(256, 688, 4, VisionConfig(64, 256, 4, 1, 56, 14, "quick_gelu", 1e-5)),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Norm scales are 1; everything else is normal, small enough that activations stay finite."""

    def read(index: Index) -> np.ndarray:
        if name.endswith("scale"):
            return np.ones(shape, BFLOAT16)[index]
        drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
        drawn *= 0.02
        return drawn.astype(BFLOAT16)[index]

    return Tensor(shape, BFLOAT16, read, "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    given = parser.parse_args()
    config = SIZES[given.size]
    shapes = expected_shapes(config)
    tensors = {name: random_tensor(name, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    checkpoint = Checkpoint("random", given.folder, config, tensors)
    with tqdm(total=checkpoint.nbytes, unit="B", unit_scale=True, desc=f"random {given.size}") as bar:
        write_checkpoint(checkpoint, given.folder, "hf", bar.update)
    print(f"wrote {given.folder}: {checkpoint.nbytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
