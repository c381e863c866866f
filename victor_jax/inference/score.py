"""How likely an answer is: the loss of training, read the other way round."""

import functools

import jax

from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.images import normalise

CHUNK = 512  # positions whose logits are held at once


@functools.partial(jax.jit, static_argnames=("module", "lengths"))
def log_probabilities(params: dict, batch: Batch, *, module: VLMModule, lengths: tuple[int, ...]) -> jax.Array:
    """float32 [B]: the summed log-probability of each row's targets."""
    pixels = None if batch.pixels is None else normalise(batch.pixels.reshape(-1, *batch.pixels.shape[2:]))
    loss, _ = module.apply(
        {"params": params}, batch.sequence, pixels, batch.targets, lengths, CHUNK, method=VLMModule.loss
    )
    return -loss
