from dataclasses import replace

import field
import numpy as np
import pytest
from plain_vision import Tower, equals

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

CONFIG = SIZES["7b"]  # 24 x 24 patches


def reference(pixels, tokens, strategy):
    tower = Tower(pixels)
    for features, scores in zip(tower.features[:, 1:], tower.class_row(2), strict=True):
        if strategy == "rank":
            kept = [patch for patch in range(16) if (scores > scores[patch]).sum() < tokens]
        else:
            rows = [scores[4 * row : 4 * row + 4].sum() for row in range(4)]
            kept = [patch for patch in range(16) if sum(row > rows[patch // 4] for row in rows) < tokens // 4]
        yield tower.projected(features[kept])


@pytest.mark.parametrize(("tokens", "strategy"), [(5, "rank"), (8, "row"), (16, "row")])
def test_the_most_significant_stay_in_reading_order(tokens, strategy):
    pixels = field.pixels(3)
    assert len({tuple(np.argsort(of_image)) for of_image in Tower(pixels).class_row(2)}) > 1
    equals(f"fopru:tokens={tokens},strategy={strategy}", pixels, reference(pixels, tokens, strategy))


@pytest.mark.parametrize(("spec", "config", "message"), [
    ("fopru:tokens=100,strategy=row", CONFIG, "tokens=100 is no whole number of rows of 24 patches"),
    ("fopru:tokens=144,strategy=column", CONFIG, "rank or row"),
    ("fopru:tokens=144", replace(CONFIG, keep_class_token=True), "keeps the class token"),
])  # fmt: skip
def test_bad_fields(spec, config, message):
    with pytest.raises(UserError, match=message):
        parse(spec, config)
