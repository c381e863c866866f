import field
import numpy as np
import pytest
from plain_vision import Tower, equals, visual_tokens

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError


def test_squares_are_averaged_behind_the_projector():
    pixels = field.pixels(2)
    tower = Tower(pixels)
    projected = tower.projected(tower.features[:, 1:]).reshape(2, 4, 4, -1)
    means = [projected[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for i in (0, 2) for j in (0, 2)]
    equals("m3:tokens=4", pixels, np.stack(means, axis=1))


def test_one_token_per_patch_is_full():
    pixels = field.pixels(2)
    equals("m3:tokens=16", pixels, visual_tokens("full", pixels))


def test_what_does_not_fit_the_grid_is_refused():
    with pytest.raises(UserError, match="tokens=9 does not divide a grid of 4 x 4 patches into squares: choose 1 or 4"):
        parse("m3:tokens=9", field.CONFIG)
