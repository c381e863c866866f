"""M3, Matryoshka multimodal models (Cai et al., arXiv 2405.17430): squares of visual tokens are averaged.

As `pool` does, but behind the projector, as in mu-cai/matryoshka-mm. Trained as usual, or untrained. The paper also
trains the vision tower, and one model for all sizes of squares: each step averages their losses. Here a run trains one.
"""

from dataclasses import dataclass
from typing import ClassVar

from victor_jax.compression.grid import grid_side
from victor_jax.compression.plan import Layers, Method, Plan, Positive
from victor_jax.compression.pool import Squares
from victor_jax.models.config import VLMConfig


@dataclass(frozen=True)
class ProjectedSquares(Squares):
    after_projector: ClassVar[bool] = True


def m3(config: VLMConfig, tokens: Positive) -> Method:
    return Method(Plan((Layers(config.language.depth),)), compressor=ProjectedSquares(grid_side(config, tokens)))
