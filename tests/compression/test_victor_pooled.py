"""Registers that begin as pooled features, against plain numpy."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE

LAYER, REGISTERS = 2, 3  # windows of 5, 5 and 6 of the 16 visual tokens
SPEC = f"victor-pooled:registers={REGISTERS},layer={LAYER}"
WINDOWS = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15]]


def reference(row, images):
    """The indices in the input sequence of what reaches the top, and its logits."""
    model, images = plain.Plain(SPEC), iter(() if images is None else images)
    pieces, stays = [], []
    for id in row.ids:
        if id != IMAGE:
            pieces.append(model.tensors["language/embedding"][id][None])
            stays.append(True)
            continue
        visual = model.visual_tokens(next(images))
        means = np.stack([visual[window].mean(axis=0) for window in WINDOWS])
        pieces += [visual, model.tensors["compression/registers"] + means]
        stays += [False] * len(visual) + [True] * REGISTERS
    x, index = np.concatenate(pieces), np.arange(len(stays))
    for number in range(plain.LANGUAGE.depth):
        if number == LAYER:
            x, index = x[stays], index[stays]
        x = model.layer(number, x, index)
    return index, model.logits(x)


def test_equals_the_slow_reference():
    """A batch of rows with two images, one and none, against each row alone."""
    plain.equals(SPEC, reference)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_its_registers_learn_and_are_saved(tmp_path):
    field.learns(SPEC, tmp_path)


def test_more_windows_than_visual_tokens_are_refused():
    with pytest.raises(UserError, match="registers=17 windows do not fit an image of 16 visual tokens"):
        parse("victor-pooled:registers=17,layer=2", field.CONFIG)
