import jax.numpy as jnp
import numpy as np
import pytest

from victor_jax.compression.plan import Kind, Layers, Plan, Size
from victor_jax.compression.spec import parse
from victor_jax.compression.steps import Leave, Return
from victor_jax.compression.stream import Flow, Stream
from victor_jax.models.sizes import SIZES

T, V, R, P = Kind.TEXT, Kind.VISUAL, Kind.REGISTER, Kind.PADDING
CONFIG = SIZES["7b"]


def counts(*rows):
    """(text, visual, registers) of each row."""
    return np.array([(0, *row) for row in rows])


def lengths(plan, *rows):
    return plan.stage_lengths(plan.sizes(counts(*rows)))


def test_lengths_of_the_paper():
    """64 tokens of text, 576 visual, 8 registers: 648 positions below the cut, 72 above it."""
    assert lengths(parse("victor:registers=8,layer=3", CONFIG).plan, (64, 576, 8)) == (648, 72)


def test_length_serves_the_longest_row_and_is_rounded_up():
    assert lengths(parse("vtw:layer=1", CONFIG).plan, (9, 31, 0), (3, 20, 0)) == (40, 16)


def test_several_leave_and_some_stay():
    plan = Plan((Layers(1), Leave(V, keep=5), Layers(1), Leave(R), Layers(1)))
    assert lengths(plan, (8, 8, 8), (8, 3, 8)) == (24, 24, 16)


def test_what_is_parked_has_a_length_of_its_own():
    plan = Plan((Leave(V, park=True), Layers(1), Return(V), Layers(1)))
    assert plan.sizes(counts((8, 20, 2))) == (Size(16, 24), Size(16, 24), Size(32, 0), Size(32, 0))
    assert plan.stages == (1, 1)


KINDS = jnp.array([[T, V, V, R, T, P], [T, T, T, P, P, P], [V, T, V, R, R, T]])


def flow(scores=None, prompt_end=(4, 2, 5)):
    origin = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32)[None], KINDS.shape)
    stream = Stream(jnp.arange(18.0).reshape(3, 6, 1), KINDS, origin, origin)
    scores = None if scores is None else jnp.array(scores)[None]
    return Flow(stream, jnp.array(prompt_end), jnp.array([5, 3, 6]), scores=scores)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("keep", [[0, 3, 4], [0, 1, 2], [1, 3, 4, 5]]), ("renumber", [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]])],
)
def test_leaving_keeps_order_and_pads_to_the_right(mode, expected):
    above = Leave(V, positions=mode).apply(flow(), Size(4, 0), None)[0].stream
    np.testing.assert_array_equal(above.kinds, [[T, R, T, P], [T, T, T, P], [T, R, R, T]])
    for row, where in enumerate(expected):
        assert above.positions[row, : len(where)].tolist() == where
    assert above.origin[0, :3].tolist() == [0, 3, 4]
    assert above.x[0, :3, 0].tolist() == [0, 3, 4]
    assert above.x[2, :, 0].tolist() == [13, 15, 16, 17]


SCORES = [[9, 1, 2, 9, 9, 9], [9, 9, 9, 9, 9, 9], [1, 9, 1, 9, 9, 9.0]]


def test_the_best_of_a_kind_stay_in_their_order():
    """Scores of other kinds and of padding count for nothing; of equal ones the first stays."""
    above = Leave(V, keep=1).apply(flow(SCORES), Size(5, 0), None)[0].stream
    assert above.origin[0, :4].tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(above.kinds[1], [T, T, T, P, P])
    assert above.origin[2].tolist() == [0, 1, 3, 4, 5]


def test_the_end_of_the_prompt_is_among_the_best():
    """A caption is predicted from the last visual token."""
    above = Leave(V, keep=1).apply(flow(SCORES, prompt_end=(1, 2, 2)), Size(5, 0), None)[0].stream
    assert above.origin[0, :4].tolist() == [0, 1, 3, 4]
    assert above.origin[2].tolist() == [1, 2, 3, 4, 5]


def test_what_was_parked_comes_back_to_its_place():
    parked, _ = Leave(V, park=True).apply(flow(), Size(4, 2), None)
    np.testing.assert_array_equal(parked.parked.kinds, [[V, V], [P, P], [V, V]])
    assert parked.parked.x[2, :, 0].tolist() == [12, 14]
    back, _ = Return(V).apply(parked, Size(6, 0), None)
    np.testing.assert_array_equal(back.stream.kinds, KINDS)
    for name in ("x", "positions", "origin"):
        for row, alive in enumerate((5, 3, 6)):
            np.testing.assert_array_equal(
                getattr(back.stream, name)[row, :alive], getattr(flow().stream, name)[row, :alive], err_msg=name
            )
    assert back.parked.kinds.shape == (3, 0)


def test_what_is_parked_twice_waits_together():
    """The best first, then the rest; they return in sequence order."""
    one, _ = Leave(V, keep=1, park=True).apply(flow(SCORES), Size(5, 1), None)
    both, _ = Leave(V, park=True).apply(one, Size(4, 2), None)
    assert both.parked.origin[0].tolist() == [1, 2]
    np.testing.assert_array_equal(Return(V).apply(both, Size(6, 0), None)[0].stream.kinds, KINDS)
