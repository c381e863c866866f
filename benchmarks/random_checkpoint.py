"""python -m benchmarks.random_checkpoint DIR --size={7b,13b,small}: a LLaVA-1.5-shaped checkpoint of random bfloat16.

The Hugging Face layout, written tensor by tensor: 13.5 GB for 7b take a few hundred MB of memory.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from victor_jax.models.sizes import SIZES
from victor_jax.weights import fresh
from victor_jax.weights.write import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    given = parser.parse_args()
    checkpoint = fresh.checkpoint(SIZES[given.size], seed=0, dtype="bfloat16")
    with tqdm(total=checkpoint.nbytes, unit="B", unit_scale=True, desc=f"random {given.size}") as bar:
        write_checkpoint(checkpoint, given.folder, "hf", bar.update)
    print(f"wrote {given.folder}: {checkpoint.nbytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
