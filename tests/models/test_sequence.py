import numpy as np
import pytest

from victor_jax.compression.plan import Kind
from victor_jax.errors import UserError
from victor_jax.models.sequence import image_slots, images_per_row, lay_out

T, V, R, P = Kind.TEXT, Kind.VISUAL, Kind.REGISTER, Kind.PADDING
IMAGE = 99


def laid(rows, mask=None, registers=2, per_image=3):
    ids = np.array(rows)
    mask = np.ones_like(ids) if mask is None else np.array(mask)
    return lay_out(ids, mask, image_token=IMAGE, tokens_per_image=per_image, registers=registers)


def test_registers_stand_after_their_image():
    s = laid([[5, IMAGE, IMAGE, IMAGE, 6, 7]])
    assert s.kinds.tolist() == [[T, V, V, V, R, R, T, T]]
    assert s.index.tolist() == [[5, 0, 1, 2, 0, 1, 6, 7]]
    assert s.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_every_image_has_its_registers_and_its_own_tokens():
    s = laid([[IMAGE] * 6 + [7]], registers=1)
    assert s.kinds[0, :9].tolist() == [V, V, V, R, V, V, V, R, T]
    assert s.index[0, :9].tolist() == [0, 1, 2, 0, 3, 4, 5, 0, 7]


def test_padding_of_either_side_goes_to_the_right():
    left = laid([[0, 0, 5, IMAGE, IMAGE, IMAGE, 6]], [[0, 0, 1, 1, 1, 1, 1]])
    right = laid([[5, IMAGE, IMAGE, IMAGE, 6, 0, 0]], [[1, 1, 1, 1, 1, 0, 0]])
    for name in ("kinds", "index", "positions"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.kinds.tolist() == [[T, V, V, V, R, R, T, P]]


def test_rows_of_different_make():
    s = laid([[5, IMAGE, IMAGE, IMAGE], [5, 6, 7, 8]], registers=0)
    assert s.kinds[:, :4].tolist() == [[T, V, V, V], [T, T, T, T]]
    assert images_per_row(s, 3).tolist() == [1, 0]


def test_image_slots_follow_reading_order():
    assert image_slots(np.array([2, 0, 1])).tolist() == [[0, 1], [0, 0], [2, 0]]


def test_a_part_of_an_image_is_refused():
    with pytest.raises(UserError, match=r"row 1 .* 4 image tokens in a row.* gives 3 per image"):
        laid([[5, IMAGE, IMAGE, IMAGE, 6, 7], [IMAGE] * 4 + [5, 6]])


def test_two_parts_of_an_image_are_refused():
    with pytest.raises(UserError, match="1 image tokens in a row"):
        laid([[IMAGE, 5, IMAGE, IMAGE]])
