"""Victor's controls: where its registers start, and text that may not look at the image. Victor itself and registers
without dropping are in tests/models/test_victor.py.
"""

import field
import numpy as np
import plain
import pytest
import talking

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE
from victor_jax.models.sizes import SIZES
from victor_jax.weights import fresh

LAYER, REGISTERS = 2, 3
BARRED = f"victor:registers={REGISTERS},layer={LAYER},route=registers"


def reference(row, images):
    """The indices in the input sequence of what reaches the top, and its logits: below the cut a layer's text attends
    to text and registers, registers and visual tokens to all before them."""
    model = plain.Plain(BARRED)
    visual, _ = model.inputs(row, images)
    kinds = np.concatenate([["v"] * 16 + ["r"] * REGISTERS if id == IMAGE else ["t"] for id in row.ids])
    x = np.zeros((len(kinds), visual.shape[1]))
    x[kinds != "r"] = visual
    registers = model.tensors["compression/registers"]
    x[kinds == "r"] = np.tile(registers, (len(row.image_tokens), 1))
    index = np.arange(len(x))
    for number in range(plain.LANGUAGE.depth):
        if number == LAYER:
            x, index = x[kinds != "v"], index[kinds != "v"]
        barred = (kinds == "t")[:, None] & (kinds == "v")[None] if number < LAYER else False
        x = model.layer(number, x, index, barred)
    return index, model.logits(x)


def test_text_that_sees_the_image_through_registers_alone_equals_the_slow_reference():
    plain.equals(BARRED, reference)


def test_new_tokens_see_no_more_than_the_text_before_them():
    field.decoding_equals_a_full_pass(BARRED)


def started(compression, seed=0, **changes):
    """The registers of a checkpoint that had none."""
    checkpoint = talking.checkpoint(None)
    tensors = fresh.with_own(checkpoint, parse(compression, checkpoint.config), seed)
    return tensors["compression/registers"], checkpoint


def test_registers_start_at_zero_or_at_a_word():
    zeros, _ = started("victor:registers=4,layer=2,start=zeros")
    np.testing.assert_array_equal(zeros.load(), np.zeros((4, 64)))
    word, checkpoint = started("victor:registers=4,layer=2,word=7")
    embedding = checkpoint.tensors["language/embedding"].load()
    np.testing.assert_array_equal(word.load(), np.stack([embedding[7]] * 4))
    np.testing.assert_array_equal(word.read((slice(1, 3), slice(8, 24))), np.stack([embedding[7, 8:24]] * 2))


def test_what_they_started_from_is_forgotten_once_they_are_trained():
    """Another start does not begin anew, and plain Victor reads them as they are."""
    trained = talking.checkpoint(None, "victor:registers=4,layer=2,start=zeros")
    for asked in ("victor:registers=4,layer=2,word=7", "victor:registers=4,layer=2"):
        found = fresh.with_own(trained, parse(asked, trained.config), 0)["compression/registers"]
        np.testing.assert_array_equal(found.load(), trained.own["compression/registers"].load())


@pytest.mark.parametrize(("fields", "message"), [
    ("word=32064", "word=32064 is no token of a vocabulary of 32064: give the id of one"),
    ("word=7,start=zeros", "start=zeros and word=7 name two starts: give one"),
    ("word=image", "word=image .* must be a whole number from 0"),
    ("start=ones", "start=ones .* must be drawn or zeros"),
    ("route=text", "route=text .* must be both or registers"),
])  # fmt: skip
def test_what_is_no_start_and_no_route_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        parse(f"victor:registers=8,layer=3,{fields}", SIZES["7b"])
