"""python -m benchmarks.random_checkpoint DIR --size={7b,13b,small}: a LLaVA-1.5-shaped checkpoint of random bfloat16.

The Hugging Face layout, written tensor by tensor: 13.5 GB for 7b take a few hundred MB of memory.
"""

import argparse
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from victor_jax.models.sizes import SIZES
from victor_jax.weights.checkpoint import Checkpoint, expected_shapes
from victor_jax.weights.tensors import Index, Tensor
from victor_jax.weights.write import write_checkpoint

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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
