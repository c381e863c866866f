"""What compressors ask of the grid of patches, and of the number of tokens that it shall become."""

import math

from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def check_grid(config: VLMConfig) -> int:
    """Patches along a side of the image, for a compressor that asks where a feature lies."""
    if config.keep_class_token:
        raise UserError(
            "this compression works on the grid of patches: this model keeps the class token, which is no patch"
        )
    return math.isqrt(config.vision.patches)


def check_fewer(config: VLMConfig, tokens: int) -> None:
    if tokens > config.features_per_image:
        raise UserError(
            f"tokens={tokens} compresses nothing: an image has {config.features_per_image} features, choose fewer"
        )


def square_root(tokens: int) -> int:
    """The side of a square grid of so many tokens."""
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise UserError(f"tokens={tokens} is no square grid of queries: choose {side**2} or {(side + 1) ** 2}")
    return side


def grid_side(config: VLMConfig, tokens: int) -> int:
    """Of the grid of tokens whose every place is a square of patches."""
    grid = check_grid(config)
    fitting = [side**2 for side in range(1, grid + 1) if grid % side == 0]
    if tokens not in fitting:
        raise UserError(
            f"tokens={tokens} does not divide a grid of {grid} x {grid} patches into squares: choose "
            f"{' or '.join(map(str, fitting))}"
        )
    return math.isqrt(tokens)
