"""The edge: ids and pixels in the convention of the Hugging Face processor become encoded rows."""

from dataclasses import replace

import numpy as np
import pytest
import small_run

from victor_jax.errors import UserError
from victor_jax.inference.arrays import encoded_rows, pixels_of_rows
from victor_jax.models.sequence import IMAGE

CONFIG = replace(small_run.CONFIG, image_token=99)  # 4 features per image
FOUR = [99] * 4


def rows_of(ids, mask=None, tokens_per_image=4):
    return encoded_rows(np.array(ids), None if mask is None else np.array(mask), CONFIG, tokens_per_image)


def test_each_run_of_placeholders_becomes_its_images():
    (row,) = rows_of([[5, *FOUR, *FOUR, 6, *FOUR]], tokens_per_image=2)
    assert row.ids.tolist() == [5, IMAGE, IMAGE, 6, IMAGE]
    assert row.image_tokens == (2, 2, 2)


def test_padding_of_either_side_is_gone():
    left, right = rows_of([[0, 0, 5, *FOUR, 6], [5, *FOUR, 6, 0, 0]], [[0, 0] + [1] * 6, [1] * 6 + [0, 0]])
    np.testing.assert_array_equal(left.ids, right.ids)
    assert left.ids.tolist() == [5, IMAGE, 6]


def test_pixels_go_to_the_rows_in_reading_order():
    rows = rows_of([[*FOUR, *FOUR, 5], [5, 6, 7, 8, 9, 10, 11, 12, 13], [*FOUR, 5, 6, 7, 8, 9]])
    pixels = np.arange(3.0).repeat(3 * 28 * 28).reshape(3, 3, 28, 28)
    first, none, last = pixels_of_rows(pixels, rows, 28)
    assert first[:, 0, 0, 0].tolist() == [0, 1]
    assert none is None
    assert last[:, 0, 0, 0].tolist() == [2]


def test_a_part_of_an_image_is_refused():
    with pytest.raises(UserError, match=r"row 1 .* 3 image tokens in a row.* gives 4 per image"):
        rows_of([[5, *FOUR, 6], [99, 99, 99, 5, 6, 7]])
    with pytest.raises(UserError, match="1 image tokens in a row"):
        rows_of([[99, 5, 99, 99, 99]])


@pytest.mark.parametrize("token", [512, 999999, -3, IMAGE])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(UserError, match=f"row 0 of input_ids has the token {token}, the model knows 0 to 511"):
        rows_of([[5, token]])
