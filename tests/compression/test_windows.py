"""Means of windows against plain numpy, one row at a time."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

LAYER, PATCHES = 2, 16
SPEC = f"windows:tokens=3,layer={LAYER}"
WINDOWS = [range(5), range(5, 10), range(10, 16)]  # of 16 tokens


def reference(row, images):
    """The indices in the input sequence of what reaches the top, and its logits."""
    model = plain.Plain()
    x, is_visual = model.inputs(row, images)
    index = np.arange(len(x))
    for number in range(plain.LANGUAGE.depth):
        if number == LAYER:
            stays, x = ~is_visual, x.copy()
            for image in np.flatnonzero(is_visual).reshape(-1, PATCHES):
                for window in WINDOWS:
                    x[image[window[-1]]] = np.mean([x[image[place]] for place in window], axis=0)
                    stays[image[window[-1]]] = True
            x, index = x[stays], index[stays]
        x = model.layer(number, x, index)
    return index, model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none, against each row alone."""
    plain.equals(SPEC, reference)


def test_a_window_for_each_token_is_full():
    field.equals_full("windows:tokens=100,layer=2")


@pytest.mark.parametrize(("spec", "message"), [
    ("windows:tokens=8,layer=33", "layer=33 is outside the language tower of 32 layers"),
    ("windows:tokens=0,layer=3", "tokens=0 .* must be a whole number from 1"),
    ("windows:tokens=8,layer=3+pool:tokens=4", "does not combine: windows:tokens=8,layer=3 chooses among all tokens"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec, SIZES["7b"])
