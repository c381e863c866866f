"""SparseVLM (Zhang et al., arXiv 2410.04417): words that look at the image say, layer by layer, which of it stays.

The raters are the words of the prompt after its last image that the visual tokens are most like, by their input
embeddings. After 3, 7 and 16 layers those visual tokens stay that the raters attend to most in the last of these
layers, mean over heads and raters. Only the raters' rows of attention are computed beside that layer. With `recycle`
the best 0.3 of those that leave are grouped, and the mean of each group stays (`recycling.py`). Untrained.

The schedule is that of the authors' code (Gumpest/SparseVLMs), which keeps fixed numbers of tokens after the layers
that it calls 2, 6 and 15; the paper's numbers follow from the rank of the attention. By default as its v2.0, nothing is
recycled and RoPE positions are kept; but v2.0 also divides the attention by that of equal states and takes half of the
heads, which is not here. Its v1.5 is `keep=300-200-110,recycle=yes,positions=renumber`. A rater is at least average
(paper), not above it (code).

As in FastV, tokens are counted per row, the last position of the prompt always stays, and images of later turns leave
first. Where the prompt ends with an image, its last position is the only rater.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Counts, Kind, Layers, Method, Plan, Positive, Size, Step, round_up
from victor_jax.compression.pyramiddrop import check_cuts
from victor_jax.compression.recycling import Recycle
from victor_jax.compression.steps import Leave, OfPrompt, Positions
from victor_jax.compression.stream import Flow, Where, survivors, take
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.ops.attention import NOTHING, attention_rows

KEEP = tuple(map(Positive, (300, 200, 118)))
BLOCK = 64  # raters whose attention is computed at once


@dataclass(frozen=True)
class NoteRaters(OfPrompt):
    """The first step: "raters", a note on which positions they are."""

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        return stream, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream, end = flow.stream, flow.prompt_end[:, None]
        in_prompt = stream.origin <= end
        is_visual = in_prompt & (stream.kinds == Kind.VISUAL)
        last = jnp.where(is_visual, stream.origin, -1).max(axis=1, keepdims=True)
        is_word = in_prompt & (stream.kinds == Kind.TEXT) & (stream.origin > last) & (last >= 0)
        alike = jnp.einsum("BVD,BTD->BVT", stream.x, stream.x, preferred_element_type=jnp.float32)
        share = jax.nn.softmax(jnp.where(is_word[:, None], alike, NOTHING), axis=2)
        relevance = jnp.where(is_visual[..., None], share, 0).sum(axis=1)  # a sum does as well as a mean
        average = jnp.where(is_word, relevance, 0).sum(axis=1) / jnp.maximum(is_word.sum(axis=1), 1)
        raters = is_word & (relevance >= average[:, None])
        raters |= (stream.origin == end) & ~raters.any(axis=1, keepdims=True)
        by_origin = take(raters, jnp.argsort(stream.origin, axis=1))  # nothing has left yet
        return replace(flow, notes=flow.notes | {"raters": by_origin}), None


@dataclass(frozen=True)
class RaterAttention:
    """q [B, T, N, H], k [B, T, K, H] -> float32 [B, T]: what the raters attend to, mean over heads and raters.

    Raters come first, in blocks, and blocks without one are passed by: their number is known to the program alone.
    """

    def __call__(self, q: jax.Array, k: jax.Array, where: Where) -> jax.Array:
        raters = where.notes["raters"]
        rows, length = raters.shape
        room = round_up(length, BLOCK)
        queries = jnp.pad(survivors(raters, length), ((0, 0), (0, room - length)))
        is_rater = jnp.arange(room)[None] < raters.sum(axis=1, keepdims=True)
        blocks = [part.reshape(rows, -1, BLOCK).swapaxes(0, 1) for part in (queries, is_rater)]

        def add(total: jax.Array, block: list[jax.Array]) -> tuple[jax.Array, None]:
            some, count = block

            def attended() -> jax.Array:
                weights = attention_rows(take(q, some), k, where.visible(some)).mean(axis=1)
                return total + jnp.where(count[..., None], weights, 0).sum(axis=1)

            return jax.lax.cond(count.any(), attended, lambda: total), None

        total, _ = jax.lax.scan(add, jnp.zeros(raters.shape, jnp.float32), blocks)
        return total / raters.sum(axis=1, keepdims=True)


def sparsevlm(
    config: VLMConfig,
    keep: tuple[Positive, ...] = KEEP,
    layers: tuple[int, ...] = (3, 7, 16),
    recycle: Literal["no", "yes"] = "no",
    positions: Positions = "keep",
) -> Method:
    depth = config.language.depth
    check_cuts(layers, 0, depth)
    if len(keep) != len(layers):
        raise UserError(
            f"keep={'-'.join(map(str, keep))} does not fit layers={'-'.join(map(str, layers))}: give one number for "
            "each of them"
        )
    leave = Recycle if recycle == "yes" else Leave
    steps: list[Layers | Step] = [NoteRaters()]
    for (start, layer), most in zip(pairwise((0, *layers)), keep, strict=True):
        steps += [Layers(layer - start - 1)] if layer - start > 1 else []
        steps += [Layers(1, RaterAttention()), leave(Kind.VISUAL, keep=most, positions=positions)]
    return Method(Plan((*steps, Layers(depth - layers[-1]))))
