"""Pixels on the device: bytes travel from the host, floats are made where they are used."""

import jax
import jax.numpy as jnp
import numpy as np

# Of OpenAI's CLIP processor, per channel.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 [..., 3, h, w] -> float32, as the CLIP processor does."""
    shape = (1,) * (pixels.ndim - 3) + (3, 1, 1)
    mean, std = (np.array(values, np.float32).reshape(shape) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.astype(jnp.float32) / 255 - mean) / std
