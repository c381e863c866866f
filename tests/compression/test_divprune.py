from dataclasses import replace

import field
import numpy as np
import pytest
from plain_vision import Tower, equals

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError

KEEPS_CLASS = replace(field.CONFIG, keep_class_token=True)


def reference(pixels, count, config):
    tower = Tower(pixels, config)
    for features in tower.features:
        tokens = tower.projected(features if config.keep_class_token else features[1:])
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        distance = lambda i, j: 1 - unit[i] @ unit[j]  # noqa: E731, B023
        everyone = range(len(tokens))
        chosen = [max(everyone, key=lambda i: min(distance(i, j) for j in everyone if j != i))]
        while len(chosen) < count:
            rest = [i for i in everyone if i not in chosen]
            chosen.append(max(rest, key=lambda i: min(distance(i, j) for j in chosen)))
        yield tokens[sorted(chosen)]


@pytest.mark.parametrize(("count", "config"), [(1, field.CONFIG), (9, KEEPS_CLASS)])
def test_the_least_alike_stay_in_reading_order(count, config):
    pixels = field.pixels(3)
    equals(f"divprune:tokens={count}", pixels, reference(pixels, count, config), config)


def test_more_than_there_are_is_full():
    field.equals_full("divprune:tokens=58")


def test_a_number_is_needed():
    with pytest.raises(UserError, match="needs tokens"):
        parse("divprune", field.CONFIG)
