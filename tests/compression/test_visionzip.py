from dataclasses import replace

import field
import numpy as np
import pytest
from plain_vision import Tower, equals

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

CONFIG = SIZES["7b"]  # 24 x 24 patches
KEEPS_CLASS = replace(field.CONFIG, keep_class_token=True)
LAST_OF_TWO = replace(field.CONFIG, feature_levels=(2, 4))  # the features of two levels, one of them the last


def reference(pixels, tokens, contextual, config):
    tower = Tower(pixels, config)
    layer = max(config.feature_levels) - 1
    for features, scores, keys in zip(tower.features, tower.class_row(layer), tower.k[layer], strict=True):
        chosen = sorted(1 + np.argsort(-scores)[: tokens - contextual - 1])
        rest = [i for i in range(1, 17) if i not in chosen]
        targets = rest[:: len(rest) // contextual][:contextual]
        keys = keys.mean(axis=1)
        keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        joined = {target: [] for target in targets}
        for i in rest:
            if i not in targets:
                joined[max(targets, key=lambda target: keys[target] @ keys[i])].append(features[i])
        merged = [features[t] + (np.mean(members, axis=0) if members else 0) for t, members in joined.items()]
        yield tower.projected(np.stack([features[0], *features[chosen], *merged]))


@pytest.mark.parametrize(("tokens", "contextual", "config"), [(8, 4, LAST_OF_TWO), (6, 1, KEEPS_CLASS)])
def test_the_dominant_stay_and_the_rest_is_merged(tokens, contextual, config):
    pixels = field.pixels(3)
    spec = f"visionzip:tokens={tokens},contextual={contextual}"
    equals(spec, pixels, reference(pixels, tokens, contextual, config), config)


def test_all_dominant_are_all_also_before_victor():
    victor = "victor:registers=2,layer=2"
    field.equals(f"visionzip:tokens=17,contextual=0+{victor}", victor, KEEPS_CLASS)


def test_the_class_token_counts():
    method = parse("visionzip:tokens=64,contextual=10", CONFIG)
    assert (method.compressor.dominant, method.tokens_per_image(CONFIG)) == (54, 64)
    assert parse("visionzip:tokens=900,contextual=10", CONFIG).tokens_per_image(CONFIG) == 577


@pytest.mark.parametrize(("spec", "config", "message"), [
    ("visionzip:tokens=64", CONFIG, "needs contextual"),
    ("visionzip:tokens=64,contextual=64", CONFIG, "contextual=64 of 64 tokens leaves no place for the class token"),
    ("visionzip:tokens=900,contextual=600", CONFIG, "choose less than 577"),
    ("visionzip:tokens=64,contextual=10", replace(CONFIG, feature_levels=(0,)), "before the first vision layer"),
])  # fmt: skip
def test_bad_fields(spec, config, message):
    with pytest.raises(UserError, match=message):
        parse(spec, config)
