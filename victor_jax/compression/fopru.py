"""FoPru, focal pruning (Jiang et al., arXiv 2411.14164): patches stay by their significance in the vision tower.

`rank` keeps the most significant ones of the whole image, `row` whole rows of the grid, those with the largest sum;
either in reading order. Untrained or trained. No code is published. Significance here is the class token's attention,
mean over heads, in the vision layer that gives the features; the paper may average over the attention of all tokens,
for which the whole matrix would have to be computed.
"""

from typing import Literal

from victor_jax.compression.grid import check_grid
from victor_jax.compression.patches import MostAttended, features_layer
from victor_jax.compression.plan import Layers, Method, Plan, Positive
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def fopru(config: VLMConfig, tokens: Positive, strategy: Literal["rank", "row"] = "rank") -> Method:
    last, side = features_layer(config), check_grid(config)
    size = side if strategy == "row" else 1
    if tokens % size:
        raise UserError(
            f"tokens={tokens} is no whole number of rows of {size} patches: choose a multiple of it or strategy=rank"
        )
    kept = MostAttended(min(tokens, side**2) // size, size, range(last, last + 1))
    return Method(Plan((Layers(config.language.depth),)), compressor=kept)
