"""Mixture of depths against plain numpy."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.plan import Layers, Plan
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

SPEC = "mod:percent=30"
ROUTED = (1, 3)  # of six layers


def reference(row, images):
    """The logits of all positions."""
    model = plain.Plain(SPEC)
    x, is_visual = model.inputs(row, images)
    positions = np.arange(len(x))
    runs = np.split(positions, np.flatnonzero(np.diff(is_visual)) + 1)
    for number in range(plain.LANGUAGE.depth):
        if number not in ROUTED:
            x = model.layer(number, x, positions)
            continue
        r = x @ model.tensors[f"compression/steps/layer_{number}"]
        scores, goes = r.copy(), ~is_visual
        scores[len(x) - field.ANSWER - 1] = np.inf
        for run in runs:
            if is_visual[run[0]]:
                goes[run[np.argsort(-scores[run])][: len(run) * 30 // 100]] = True
        weight = np.where(is_visual, 2 / (1 + np.exp(-r)), 1)[goes, None]
        x[goes] += weight * (model.layer(number, x[goes], positions[goes]) - x[goes])
    return model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none, against each row alone; at every position, visual ones too. One
    prompt ends with its image."""
    rows, images = field.unlike_rows(SPEC)
    rows[1] = field.encoded((2, field.ANSWER), tokens=16)
    for row, image, (_, logits) in zip(rows, images, plain.reached(SPEC, rows, images), strict=True):
        np.testing.assert_allclose(logits, reference(row, image), atol=field.TOLERANCE, rtol=0)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_its_routers_learn(tmp_path):
    field.learns(SPEC, tmp_path)


def test_the_plan_routes_every_other_layer_but_not_the_last():
    plan = parse("mod", SIZES["7b"]).plan
    assert plan.stages == (1,) * 30 + (2,)
    lengths = plan.stage_lengths(plan.sizes(np.array([[0, 64, 576, 0]])))
    assert lengths == (640, 184) * 15 + (640,)  # so many keys and values are cached
    assert parse("mod:percent=100", SIZES["7b"]).plan == Plan((Layers(32),))
    assert parse("mod:every=4,first=2", SIZES["7b"]).plan.stages == (2, 1, *(3, 1) * 7, 1)


@pytest.mark.parametrize(("fields", "message"), [
    ("percent=0", "percent=0 .* from 1 to 100"),
    ("every=0", "every=0 .* from 1"),
    ("first=31", "first=31 leaves no layer to route below the last of 32: choose 0 to 30"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        parse(f"mod:{fields}", SIZES["7b"])
