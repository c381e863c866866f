"""The last visual tokens of each image, and random ones, against plain numpy, one row at a time."""

from dataclasses import replace

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.plan import Layers
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

TOKENS, LAYER, PATCHES = 3, 2, 16
RANDOM = f"random:tokens={TOKENS},layer={LAYER},positions=renumber"


def reference(row, images, places, renumber):
    """The indices in the input sequence of what reaches the top, and its logits."""
    model = plain.Plain()
    x, is_visual = model.inputs(row, images)
    index = positions = np.arange(len(x))
    for number in range(plain.LANGUAGE.depth):
        if number == LAYER:
            visual = np.flatnonzero(is_visual).reshape(-1, PATCHES)
            stays = np.union1d(np.flatnonzero(~is_visual), visual[:, places])
            x, index = x[stays], index[stays]
            positions = np.arange(len(x)) if renumber else index
        x = model.layer(number, x, positions)
    return index, model.logits(x)


@pytest.mark.parametrize(
    ("spec", "places"), [(f"last:tokens={TOKENS},layer={LAYER}", [13, 14, 15]), (RANDOM, [0, 2, 11])]
)
def test_equals_the_slow_reference(spec, places):
    """A batch of rows with two images, one and none, against each row alone: so many of each image."""
    plain.equals(spec, lambda row, image: reference(row, image, places, spec == RANDOM))


def test_decoding_equals_a_full_pass():
    """The same places in both."""
    field.decoding_equals_a_full_pass(RANDOM)


def test_places_follow_from_the_seed_and_from_nothing_else():
    def places(fields, config=SIZES["7b"]):
        (step,) = (step for step in parse(f"random:{fields}", config).plan.steps if not isinstance(step, Layers))
        return step.places

    few, more, other = (places(f"tokens={tokens}") for tokens in ("8,layer=3", "64,layer=5", "8,layer=3,seed=1"))
    assert (len(few), len(more)) == (8, 64)
    assert set(few) < set(more)  # so budgets are comparable
    assert few != other
    assert places("tokens=600,layer=3") == tuple(range(576))
    assert places("tokens=577,layer=3", replace(SIZES["7b"], keep_class_token=True)) == tuple(range(577))


@pytest.mark.parametrize("name", ["last", "random", "windows"])
def test_the_budget_is_that_of_registers(name):
    """Two images and 64 words: as many positions above the cut as with so many registers after each image."""
    plan, victor = parse(f"{name}:tokens=8,layer=3", SIZES["7b"]).plan, parse("victor:registers=8,layer=3", SIZES["7b"])
    above = plan.stage_lengths(plan.sizes(np.array([[0, 64, 2 * 576, 0]])))[1]
    assert above == victor.plan.stage_lengths(victor.plan.sizes(np.array([[0, 64, 2 * 576, 2 * 8]])))[1]
    assert parse(f"{name}:tokens=8,layer=32", SIZES["7b"]).plan == parse("full", SIZES["7b"]).plan


@pytest.mark.parametrize(("spec", "message"), [
    ("last:tokens=8,layer=33", "layer=33 is outside the language tower of 32 layers"),
    ("random:tokens=8", "needs layer"),
    ("last:tokens=0,layer=3", "tokens=0 .* must be a whole number from 1"),
    ("pool:tokens=144+last:tokens=8,layer=3", "last:tokens=8,layer=3 chooses among all tokens that the vision tower"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec, SIZES["7b"])
