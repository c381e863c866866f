"""What the registers read: their attention over the patches of an image, in the layers that still see it."""

import functools
from dataclasses import dataclass, replace

import jax
import numpy as np

from victor_jax.compression.plan import Kind, Layers, Method, Plan, Size
from victor_jax.compression.stream import Where, take
from victor_jax.errors import UserError
from victor_jax.inference.prompts import Picture
from victor_jax.inference.vlm import VLM
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.attention import attention_rows


@dataclass(frozen=True)
class RowsAttention:
    """A score: the attention of some positions, mean over heads, float32 [B, rows, T]."""

    rows: tuple[int, ...]

    def __call__(self, q: jax.Array, k: jax.Array, where: Where) -> jax.Array:
        rows = jax.numpy.broadcast_to(jax.numpy.array(self.rows)[None], (len(q), len(self.rows)))
        return attention_rows(take(q, rows), k, where.visible(rows)).mean(axis=1)


def register_attention(vlm: VLM, image: Picture, prompt: str = "Describe the image.") -> np.ndarray:
    """float32 [layers below the cut, M, patches]: the registers' attention to each patch, mean over heads.

    A row sums to less than one: the rest goes to the text before the image, to registers, and to a class token.
    The question stands after the registers, which cannot see it; only what comes before the image can matter.
    """
    if not vlm.method.registers:
        raise UserError(f"{vlm.compression} has no registers whose attention could be shown: load a victor model")
    if not isinstance(first := vlm.method.plan.steps[0], Layers):
        raise UserError(f"{vlm.compression} cuts before the first layer: its registers see no image")
    batch, sizes = vlm.prepare(vlm.prompter.ask([prompt], [image]))
    rows, columns = (np.flatnonzero(batch.sequence.kinds[0] == kind) for kind in (Kind.REGISTER, Kind.VISUAL))
    scored = Layers(first.count, RowsAttention(tuple(rows.tolist())))
    weights = vlm.call(_attention, batch, sizes[:1], method=replace(vlm.method, plan=Plan((scored,))))
    return np.asarray(weights[:, 0], np.float32)[:, :, columns[len(columns) - vlm.config.vision.patches :]]


@functools.partial(jax.jit, static_argnames=("module", "sizes", "method"))
def _attention(params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], method: Method) -> jax.Array:
    """float32 [L, B, rows, T]: the scores of the plan's only stage."""
    flow, _ = module.clone(method=method).apply({"params": params}, batch, sizes, method=VLMModule.run)
    return flow.scores
