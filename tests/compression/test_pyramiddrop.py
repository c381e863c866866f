"""PyramidDrop against plain numpy, which recomputes the layer ahead whole."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.plan import Kind, Layers
from victor_jax.compression.spec import parse
from victor_jax.compression.steps import Leave
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

LAYERS, PERCENT = (2, 4), 40
SPEC = "pyramiddrop:layers=2-4,percent=40"


def reference(row, images):
    """The indices in the input sequence of what reaches the top, and its logits."""
    model = plain.Plain()
    x, is_visual = model.inputs(row, images)
    index = np.arange(len(x))
    prompt_end = len(x) - field.ANSWER - 1
    for number in range(plain.LANGUAGE.depth):
        if number in LAYERS:
            weights, _ = model.attention(number, x, np.arange(len(x)))
            scores = weights[:, index == prompt_end].mean(axis=(0, 1))
            candidates = np.flatnonzero(is_visual)
            best = candidates[np.argsort(-scores[candidates])[: len(candidates) * PERCENT // 100]]
            stays = np.union1d(np.flatnonzero(~is_visual), best)
            x, is_visual, index = x[stays], is_visual[stays], index[stays]
        x = model.layer(number, x, np.arange(len(x)))
    return index, model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none, against each row alone; the same visual tokens stay."""
    plain.equals(SPEC, reference)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_all_percent_is_full():
    field.equals_full("pyramiddrop:layers=2-4,percent=100")


def test_the_plan_is_that_of_the_paper():
    plan = parse("pyramiddrop", SIZES["7b"]).plan
    assert plan.stages == (8, 8, 8, 8)
    assert [step.ahead for step in plan.steps if isinstance(step, Layers)] == [True, True, True, False]
    assert {step for step in plan.steps if not isinstance(step, Layers)} == {
        Leave(Kind.VISUAL, percent=50, positions="renumber")
    }
    assert plan.stage_lengths(plan.sizes(np.array([[0, 64, 576, 0]]))) == (640, 352, 208, 136)


@pytest.mark.parametrize(("fields", "config", "message"), [
    ("", field.CONFIG, "layers=8-16-24 does not fit layers 0 to 6 of the language tower: choose rising .* 1 to 5"),
    ("layers=8-24-16", SIZES["7b"], "layers=8-24-16 does not fit .* choose rising numbers from 1 to 31"),
    ("layers=0-8", SIZES["7b"], "layers=0-8 does not fit"),
    ("layers=8-32", SIZES["7b"], "layers=8-32 does not fit"),
    ("percent=0", SIZES["7b"], "percent=0 .* from 1 to 100"),
    ("percent=101", SIZES["7b"], "percent=101 .* from 1 to 100"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"pyramiddrop:{fields}", config)
