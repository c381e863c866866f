"""What the registers read: their attention over the patches of an image, in the layers that still see it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Kind
from victor_jax.errors import UserError
from victor_jax.inference.prompts import Picture
from victor_jax.inference.vlm import VLM
from victor_jax.models.config import LanguageConfig
from victor_jax.models.language import LanguageLayer, View
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.images import normalise
from victor_jax.ops.norms import rms_norm
from victor_jax.ops.rope import inverse_frequencies, rotate, rotation


def register_attention(vlm: VLM, image: Picture, prompt: str = "Describe the image.") -> np.ndarray:
    """float32 [layers below the cut, M, patches]: the registers' attention to each patch, mean over heads.

    A row sums to less than one: the rest goes to the text before the image, to registers, and to a class token.
    The question stands after the registers, which cannot see it; only what comes before the image can matter.
    """
    layers = vlm.module.compression.plan.stages[0]
    if not vlm.module.compression.registers:
        raise UserError(f"{vlm.compression} has no registers whose attention could be shown: load a victor model")
    if not layers:
        raise UserError(f"{vlm.compression} cuts before the first layer: its registers see no image")
    asked = vlm.prompter.ask([prompt], [image])
    batch = vlm.prompter.batch(asked, vlm.module.compression.registers)
    lengths = vlm.module.compression.plan.lengths(batch.sequence.kinds)
    weights = vlm.call(_attention, (batch,), lengths, layers=layers)  # [L, T, S]
    rows, columns = (np.flatnonzero(batch.sequence.kinds[0] == kind) for kind in (Kind.REGISTER, Kind.VISUAL))
    return np.asarray(weights, np.float32)[:, rows][:, :, columns[len(columns) - vlm.config.vision.patches :]]


@functools.partial(jax.jit, static_argnames=("module", "lengths", "layers"))
def _attention(params: dict, batch: Batch, *, module: VLMModule, lengths: tuple[int, ...], layers: int) -> jax.Array:
    """float32 [L, T, S] of the only row: each position's attention in the first layers, mean over heads."""
    c, sequence = module.config.language, batch.sequence

    def bottom(tower: VLMModule) -> jax.Array:
        visual = tower.visual_tokens(normalise(batch.pixels[0]), None, 1)
        return tower.embed(sequence, visual)

    x: jax.Array = module.apply({"params": params}, method=bottom)  # type: ignore[assignment]
    positions = sequence.positions
    behind = positions[:, :, None] - positions[:, None, :]  # [B, T, S]
    seen = (behind >= 0) & (behind < (c.sliding_window or behind.shape[1]))
    view = View(*rotation(positions, inverse_frequencies(c.rope, c.head_dim)), mask=seen, slot=None)
    layer = LanguageLayer(c, module.dtype, "xla", None)

    def step(x: jax.Array, of_layer: dict) -> tuple[jax.Array, jax.Array]:
        weights = _weights(x, of_layer, view, c)
        (x, _), _ = layer.apply({"params": of_layer}, (x, None), jnp.int32(0), view)
        return x, weights.mean(axis=1)[0]

    _, weights = jax.lax.scan(step, x, params["language"]["stages_0"], length=layers)
    return weights


def _weights(x: jax.Array, of_layer: dict, view: View, c: LanguageConfig) -> jax.Array:
    """x [B, T, D], the input of a layer -> the attention weights of that layer, float32 [B, N, T, S]."""
    y = rms_norm(x, of_layer["norm1"]["scale"], c.norm_eps)

    def heads(name: str, count: int) -> jax.Array:
        dense = of_layer["attention"][name]
        z = y @ dense["kernel"].astype(y.dtype)
        if "bias" in dense:
            z = z + dense["bias"].astype(z.dtype)[None, None]
        return rotate(z.reshape(*x.shape[:2], count, c.head_dim), view.cosine, view.sine)

    q = heads("q", c.heads).reshape(*x.shape[:2], c.kv_heads, -1, c.head_dim)  # each key head serves neighbours
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, heads("k", c.kv_heads), preferred_element_type=jnp.float32)
    logits = jnp.where(view.mask[:, None, None], logits * c.head_dim**-0.5, -jnp.inf)  # type: ignore[index]
    return jax.nn.softmax(logits, axis=-1).reshape(x.shape[0], c.heads, *logits.shape[-2:])
