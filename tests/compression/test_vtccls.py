from dataclasses import replace

import field
import numpy as np
import pytest
from plain_vision import Tower, equals

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

CONFIG = SIZES["7b"]  # 24 x 24 patches, features of level 23 of 24
TWO_LEVELS = replace(field.CONFIG, feature_levels=(1, 3))


def reference(pixels, tokens, first, config):
    tower = Tower(pixels, config)
    scores = sum(tower.class_row(layer) for layer in range(first, 3))
    for features, of_image in zip(tower.features, scores, strict=True):
        kept = sorted(np.argsort(-of_image)[:tokens])
        yield tower.projected(features[1:][kept])


@pytest.mark.parametrize(("tokens", "first", "config"), [(5, 0, field.CONFIG), (3, 2, TWO_LEVELS)])
def test_the_most_attended_patches_stay_in_reading_order(tokens, first, config):
    pixels = field.pixels(3)
    equals(f"vtccls:tokens={tokens},first={first}", pixels, reference(pixels, tokens, first, config), config)


def test_unlike_rows():
    field.equals_its_rows_alone("vtccls:tokens=5,first=1")


def test_more_than_there_are_are_all_also_before_vtw():
    field.equals("vtccls:tokens=17,first=0+vtw:layer=3", "vtw:layer=3")


def test_it_looks_no_higher_than_the_features():
    compressor = parse("vtccls:tokens=64,first=14", CONFIG).compressor
    assert (compressor.looked(CONFIG), compressor.tokens(CONFIG)) == (range(14, 23), 64)


@pytest.mark.parametrize(("spec", "config", "message"), [
    ("vtccls:tokens=64", CONFIG, "needs first"),
    ("vtccls:tokens=64,first=23", CONFIG, "first=23 is above the vision layer that gives the features: choose 0 to 22"),
    ("vtccls:tokens=64,first=0", replace(CONFIG, keep_class_token=True), "keeps the class token"),
    ("vtccls:tokens=64,first=0", replace(CONFIG, feature_levels=(0,)), "before the first vision layer"),
])  # fmt: skip
def test_bad_fields(spec, config, message):
    with pytest.raises(UserError, match=message):
        parse(spec, config)
