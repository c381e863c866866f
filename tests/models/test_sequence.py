import numpy as np

from victor_jax.compression.plan import Kind
from victor_jax.models.sequence import IMAGE, EncodedRow, kind_counts, lay_out
from victor_jax.ops.losses import IGNORE

T, V, R, P = Kind.TEXT, Kind.VISUAL, Kind.REGISTER, Kind.PADDING
X = IGNORE


def row(ids, image_tokens=(), supervised=()):
    ids = np.array(ids, np.int32)
    targets = np.where(np.isin(np.arange(len(ids)), supervised), ids, IGNORE)
    return EncodedRow(ids, targets, image_tokens)


def test_registers_stand_after_their_image():
    s, _ = lay_out([row([5, IMAGE, 6, 7], (3,))], registers=2)
    assert s.kinds.tolist() == [[T, V, V, V, R, R, T, T]]
    assert s.index.tolist() == [[5, 0, 1, 2, 0, 1, 6, 7]]
    assert s.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_every_image_has_a_token_count_of_its_own():
    s, _ = lay_out([row([IMAGE, 7, IMAGE, IMAGE], (1, 3, 2))], registers=1)
    assert s.kinds[0, :10].tolist() == [V, R, T, V, V, V, R, V, V, R]
    assert s.index[0, :10].tolist() == [0, 0, 7, 1, 2, 3, 0, 4, 5, 0]


def test_rows_of_different_make_and_a_filler():
    rows = [row([5, IMAGE], (3,)), row([5, 6, 7, 8, 9]), None]
    s, targets = lay_out(rows, registers=1)
    assert s.kinds[:, :5].tolist() == [[T, V, V, V, R], [T] * 5, [P] * 5]
    assert (targets == X).all()
    assert kind_counts(rows, registers=1).tolist() == [[0, 1, 3, 1], [0, 5, 0, 0], [0, 0, 0, 0]]


def test_targets_are_shifted_onto_the_position_before():
    s, targets = lay_out([row([1, IMAGE, 5, 6, 7], (2,), supervised=(2, 4))], registers=1)
    assert s.kinds[0].tolist() == [T, V, V, R, T, T, T, P]
    assert targets[0].tolist() == [X, X, X, 5, X, 7, X, X]


def test_the_prompt_ends_where_the_first_answer_is_predicted():
    """Or at the last position of a row that has none."""
    rows = [row([1, IMAGE, 5, 6, 7], (2,), supervised=(3, 4)), row([1, 2, 3])]
    assert lay_out(rows, registers=1)[0].prompt_end.tolist() == [4, 2]
