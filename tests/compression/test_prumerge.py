from dataclasses import replace

import field
import numpy as np
import pytest
from plain_vision import Tower, equals

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

CONFIG = SIZES["7b"]  # 24 x 24 patches
TWO_LEVELS = replace(field.CONFIG, feature_levels=(1, 2))


def outliers(attention):
    first, third = np.percentile(attention, [25, 75])
    return int((attention > third + 1.5 * (third - first)).sum())


def reference(pixels, keep, neighbours, config):
    """`keep`: attention [P] -> the patches that stay, in order."""
    tower = Tower(pixels, config)
    layer = max(config.feature_levels)
    attentions = tower.class_row(layer, one_head=True)
    for features, attention, keys in zip(tower.features[:, 1:], attentions, tower.k[layer][:, 1:], strict=True):
        keys = keys.reshape(16, -1)
        keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        kept, tokens = keep(attention), []
        for i in kept:
            others = sorted((j for j in range(16) if j != i), key=lambda j: -(keys[i] @ keys[j]))
            tokens.append(features[i] + sum(attention[j] * features[j] for j in others[:neighbours]))
        tokens.append(sum(attention[j] * features[j] for j in range(16) if j not in kept))
        yield tower.projected(np.stack(tokens))


def falling(attention, count):
    return list(np.argsort(-attention)[:count])


def plus(attention, count, step):
    kept = falling(attention, count)
    return kept + [patch for patch in range(0, 15, step) if patch not in kept]


PIXELS = field.pixels(8, seed=2)


def test_images_have_unlike_numbers_of_outliers():
    """So that what follows means something."""
    counts = [outliers(row) for row in Tower(PIXELS).class_row(3, one_head=True)]
    assert {0, 1, 2, 3} <= {*counts}, counts


def plus_outliers(attention, most):
    count = min(outliers(attention), most)
    return plus(attention, count, step=16 // max(count, 1) // 3)


@pytest.mark.parametrize(("spec", "keep", "neighbours", "config"), [
    ("prumerge", lambda a: falling(a, outliers(a)), 3, field.CONFIG),
    ("prumerge:tokens=6", lambda a: falling(a, 5), 15, TWO_LEVELS),
    ("prumergeplus:most=12", lambda a: plus_outliers(a, most=2), 3, field.CONFIG),
    ("prumergeplus:best=4,step=3", lambda a: plus(a, 4, 3), 3, field.CONFIG),
])  # fmt: skip
def test_some_stay_and_take_up_the_others(spec, keep, neighbours, config):
    spec = f"{spec}{',' if ':' in spec else ':'}neighbours={neighbours}"
    equals(spec, PIXELS, reference(PIXELS, keep, neighbours, config), config)


def test_unlike_rows_of_unlike_numbers():
    field.equals_its_rows_alone("prumergeplus:most=12,neighbours=3")


def test_it_goes_before_victor():
    field.decoding_equals_a_full_pass("prumerge:neighbours=3+victor:registers=2,layer=2")


def test_places():
    """A quarter of the patches at most can be outliers; evenly spaced ones come besides."""
    for spec, places in [
        ("prumerge", 145), ("prumerge:most=48", 48), ("prumerge:most=500", 145), ("prumerge:tokens=64", 64),
        ("prumergeplus:most=200", 193), ("prumergeplus:best=13,step=11", 13 + 53 + 1),
    ]:  # fmt: skip
        assert parse(spec, CONFIG).tokens_per_image(CONFIG) == places, spec


@pytest.mark.parametrize(("spec", "config", "message"), [
    ("prumerge:tokens=64,most=64", CONFIG, "tokens=…, a fixed number, or most=…"),
    ("prumergeplus", CONFIG, "most=….* or best=… and step=…"),
    ("prumergeplus:best=13", CONFIG, "best=… and step=…"),
    ("prumergeplus:most=4", CONFIG, "most=4 has no room .* choose 5 or more"),
    ("prumerge:tokens=64", replace(CONFIG, keep_class_token=True), "keeps the class token"),
    ("prumerge:tokens=64", replace(CONFIG, feature_levels=(24,)), "this model takes them from the last layer"),
])  # fmt: skip
def test_bad_fields(spec, config, message):
    with pytest.raises(UserError, match=message):
        parse(spec, config)
