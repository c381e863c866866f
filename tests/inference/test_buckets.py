"""Which rows are answered together: each once, in few programs, with little padding, by pictures."""

import numpy as np
from PIL import Image

from victor_jax.inference.buckets import in_buckets, in_order
from victor_jax.models.sequence import IMAGE, EncodedRow

TOKENS = 576


def row(text, *pictures):
    ids = np.array([IMAGE] * len(pictures) + [5] * text, np.int32)
    return EncodedRow(ids, ids, (TOKENS,) * len(pictures), pictures)


def mixed(count, seed=0):
    """Text-only rows, questions about some pictures, some of them long, and rows of two pictures."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(4, count, p=[0.2, 0.5, 0.2, 0.1])
    return [
        row(int(rng.integers(40, 70) + 100 * (kind == 2)), *map(str, rng.integers(40, size=[0, 1, 1, 2][kind])))
        for kind in kinds
    ]


def computed(rows, batches):
    """Positions that are run through the tower, and those that are filled."""
    of_batch = [batch.size * (batch.shape.text + batch.shape.visual) for batch in batches]
    return sum(of_batch), sum(one.text_length + sum(one.image_tokens) for one in rows)


def test_every_row_is_answered_once_in_a_batch_that_holds_it():
    rows = mixed(203)
    batches = in_buckets(rows, 16, 8, share=True)
    assert len(batches) == 13
    assert sorted(row for batch in batches for row in batch.rows) == list(range(203))
    assert in_order(203, batches, [batch.rows for batch in batches]) == list(range(203))
    for batch in batches:
        assert len(batch.filled) == batch.size == 16
        assert batch.filled[: len(batch.rows)] == list(batch.rows)
        for one in (rows[number] for number in batch.filled):
            assert one.text_length <= batch.shape.text
            assert len(one.images) <= batch.shape.images
            assert sum(one.image_tokens) <= batch.shape.visual
    assert in_buckets(rows, 16, 8, share=True) == batches
    assert [len(batch.rows) for batch in batches] == [16] * 12 + [11]
    assert batches[0].shape.images == 2, "what takes the most memory comes first"


def test_few_rows_are_one_batch_and_none_are_none():
    (only,) = in_buckets([row(9), row(30, "a")], 16, 0, share=True)
    assert (only.size, only.shape.text, only.shape.images) == (2, 32, 1)
    assert sorted(only.rows) == [0, 1]
    assert in_buckets([], 16, 0, share=True) == []


def test_many_rows_of_mixed_lengths_are_little_padded_by_few_programs():
    """In the order asked, nearly every batch has a row of two pictures, and twice as much is computed."""
    rows = mixed(4000)
    batches = in_buckets(rows, 16, 8, share=False)
    taken, filled = computed(rows, batches)
    assert taken < 1.1 * filled
    assert len({(batch.size, batch.shape) for batch in batches}) <= 8
    few = in_buckets(rows[:160], 16, 8, share=False)
    assert len({batch.shape for batch in few}) <= 3, "ten batches do not pay for many compiles"


def test_questions_about_one_picture_share_a_batch_and_its_places():
    """As POPE asks: six about each picture, here in random order."""
    rng = np.random.default_rng(0)
    rows = [row(int(rng.integers(45, 49)), f"{number % 100}.jpg") for number in rng.permutation(600)]
    batches = in_buckets(rows, 16, 8, share=True)
    assert {batch.pictures for batch in batches} == {4}
    for batch in batches:
        assert len({rows[number].images for number in batch.rows}) <= 4
    assert {batch.pictures for batch in in_buckets(rows, 16, 8, share=False)} == {None}
    alone = [row(45, f"{number}.jpg") for number in range(64)]
    assert {batch.pictures for batch in in_buckets(alone, 16, 8, share=True)} == {None}


def test_pictures_in_memory_are_told_apart_without_looking_at_their_pixels():
    one, same = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    (shared,) = in_buckets([row(9, one)] * 4, 4, 0, share=True)
    (two,) = in_buckets([row(9, one), row(9, same)] * 2, 4, 0, share=True)
    assert (shared.pictures, two.pictures) == (1, 2)
