"""FastV (Chen et al., arXiv 2403.06764): after layer K only the visual tokens stay that the prompt looks at most.

The score of a visual token is the attention that the last position of the prompt pays it in layer K, mean over heads.
Only that one row of attention is computed beside the layers up to K, so every layer keeps its kernel. In training, and
for `score`, the last position of the prompt is the one that predicts the first answer; the kept tokens are chosen once.
So images of later turns, which it cannot see, leave first. Untrained or trained. Positions keep their RoPE numbers, as
in the authors' code.
"""

from dataclasses import dataclass

import jax

from victor_jax.compression.plan import Kind, Layers, Method, Plan, Positive
from victor_jax.compression.steps import Leave, Positions
from victor_jax.compression.stream import Where, take
from victor_jax.compression.withdrawal import check_layer
from victor_jax.models.config import VLMConfig
from victor_jax.ops.attention import attention_rows


@dataclass(frozen=True)
class PromptAttention:
    """q [B, T, N, H], k [B, T, K, H] -> float32 [B, T]: what the last position of the prompt attends to."""

    def __call__(self, q: jax.Array, k: jax.Array, where: Where) -> jax.Array:
        rows = where.prompt_end[:, None]
        return attention_rows(take(q, rows), k, where.visible(rows)).mean(axis=1)[:, 0]


def fastv(config: VLMConfig, keep: Positive, layer: int = 2, positions: Positions = "keep") -> Method:
    depth = config.language.depth
    check_layer(layer, depth, lowest=1)
    if layer == depth:
        return Method(Plan((Layers(depth),)))
    best = Leave(Kind.VISUAL, keep=keep, positions=positions)
    below = (Layers(layer - 1),) if layer > 1 else ()
    return Method(Plan((*below, Layers(1, PromptAttention()), best, Layers(depth - layer))))
