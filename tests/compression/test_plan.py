import jax.numpy as jnp
import numpy as np

from victor_jax.compression import cut
from victor_jax.compression.plan import Cut, Kind, Plan
from victor_jax.compression.spec import parse

T, V, R, P = Kind.TEXT, Kind.VISUAL, Kind.REGISTER, Kind.PADDING


def test_lengths_of_the_paper():
    """35 tokens of text, 576 visual, 8 registers, 29 of text: 648 positions below the cut, 72 above it."""
    row = np.array([T] * 35 + [V] * 576 + [R] * 8 + [T] * 29)[None]
    assert parse("victor:registers=8,layer=3", 32).plan.lengths(row) == (648, 72)


def test_length_serves_the_longest_row_and_is_rounded_up():
    rows = np.array([[T] * 9 + [V] * 31, [T] * 3 + [V] * 20 + [P] * 17])
    assert parse("vtw:layer=1", 2).plan.lengths(rows) == (40, 16)


def test_length_never_grows():
    row = np.array([[T] * 9])
    assert parse("vtw:layer=1", 2).plan.lengths(row) == (9, 9)


def test_two_cuts():
    plan = Plan((1, 1, 1), (Cut(V, "keep"), Cut(R, "keep")))
    row = np.array([[T] * 8 + [V] * 8 + [R] * 8])
    assert plan.lengths(row) == (24, 16, 8)


def test_cut_keeps_order_and_pads_to_the_right():
    kinds = jnp.array([[T, V, V, R, T, P], [T, T, T, P, P, P], [V, T, V, R, R, T]])
    positions = jnp.broadcast_to(jnp.arange(6)[None], kinds.shape)
    x = jnp.arange(18.0).reshape(3, 6, 1)
    for mode, expected in (
        ("keep", [[0, 3, 4], [0, 1, 2], [1, 3, 4, 5]]),
        ("renumber", [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]),
    ):
        above = cut.apply(Cut(V, mode), 4, cut.Stream(x, kinds, positions, origin=positions))
        np.testing.assert_array_equal(above.kinds, [[T, R, T, P], [T, T, T, P], [T, R, R, T]])
        for row, where in enumerate(expected):
            assert above.positions[row, : len(where)].tolist() == where
        assert above.origin[0, :3].tolist() == [0, 3, 4]
        assert above.x[0, :3, 0].tolist() == [0, 3, 4]
        assert above.x[2, :, 0].tolist() == [13, 15, 16, 17]
