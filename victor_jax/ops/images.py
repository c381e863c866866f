"""Pixels on the device: bytes travel from the host, floats are made where they are used."""

import jax
import jax.numpy as jnp
import numpy as np

# Mean and standard deviation of OpenAI's CLIP processor.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 [..., 3, h, w] -> float32, as the CLIP processor does."""
    shape = (1,) * (pixels.ndim - 3) + (3, 1, 1)
    scaled = pixels.astype(jnp.float32) / 255
    return (scaled - CLIP_MEAN.reshape(shape)) / CLIP_STD.reshape(shape)
