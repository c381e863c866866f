"""HiDrop against plain numpy, which recomputes the layer ahead whole."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.plan import Kind, Layers
from victor_jax.compression.spec import parse
from victor_jax.compression.steps import Leave, Return
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

ENTER, KEEP, EXIT = 2, {3: 6, 4: 2}, 5
SPEC = "hidrop:enter=2,layers=3-4,keep=6-2,exit=5"


def reference(row, images):
    """The indices in the input sequence of what reaches the top, and its logits."""
    model = plain.Plain()
    bottom, is_visual = model.inputs(row, images)
    text = index = np.flatnonzero(~is_visual)
    x = bottom[text]
    for number in range(plain.LANGUAGE.depth):
        if number == ENTER:
            bottom[text] = x
            x, index = bottom, np.arange(len(bottom))
        if number in KEEP:
            weights, _ = model.attention(number, x, index)
            scores = weights[:, index == len(bottom) - field.ANSWER - 1].mean(axis=(0, 1))
            candidates = np.flatnonzero(is_visual[index])
            best = candidates[np.argsort(-scores[candidates])[: KEEP[number]]]
            stays = np.union1d(np.flatnonzero(~is_visual[index]), best)
            x, index = x[stays], index[stays]
        if number == EXIT:
            x, index = x[~is_visual[index]], text
        x = model.layer(number, x, index)
    return index, model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none, against each row alone. Other choices of visual tokens would give
    other logits."""
    plain.equals(SPEC, reference)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_entering_at_once_keeping_all_and_never_leaving_is_full():
    field.equals_full("hidrop:enter=0,layers=3,keep=100,exit=6")


def test_the_plan_is_that_of_the_paper():
    plan = parse("hidrop", SIZES["7b"]).plan
    assert plan.steps[:3] == (Leave(Kind.VISUAL, park=True), Layers(8), Return(Kind.VISUAL))
    assert plan.steps[-2:] == (Leave(Kind.VISUAL), Layers(8))
    assert plan.stages == (8, 2, 4, 2, 2, 6, 8)
    counts = np.array([[0, 64, 576, 0]])
    lengths = [size.stream for size in plan.sizes(counts)]
    assert lengths == [64, 64, 640, 640, 280, 280, 80, 80, 72, 72, 72, 72, 64, 64]


@pytest.mark.parametrize(("fields", "config", "message"), [
    ("", field.CONFIG, "enter=8 and exit=24 do not fit the language tower of 6 layers: choose an exit up to 6"),
    ("enter=24", SIZES["7b"], "enter=24 and exit=24 do not fit"),
    ("exit=33", SIZES["7b"], "enter=8 and exit=33 do not fit the language tower of 32 layers"),
    ("layers=8-14-16-18", SIZES["7b"], "layers=8-14-16-18 does not fit layers 8 to 24 .* from 9 to 23"),
    ("keep=215-10-5", SIZES["7b"], "keep=215-10-5 does not fit layers=10-14-16-18: give one number for each"),
    ("keep=5-10-5-1", SIZES["7b"], "keep=5-10-5-1 does not fit"),
    ("keep=5-4-3-0", SIZES["7b"], "keep=5-4-3-0 .* must be a whole number from 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"hidrop:{fields}", config)
