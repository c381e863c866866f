from dataclasses import replace

import jax
import numpy as np
import pytest
from llava_folder import SIZE, TOKENS_PER_IMAGE, image_row, opened, rows_of_every_kind

from victor_jax.compression.plan import Kind
from victor_jax.data.batches import BatchSource, build_batch
from victor_jax.data.images import preprocess
from victor_jax.data.schedule import FILLER, Schedule
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE

T, V, R, P = Kind.TEXT, Kind.VISUAL, Kind.REGISTER, Kind.PADDING
X = IGNORE


def example(ids, supervised, images=()):
    ids = np.array(ids, np.int32)
    return EncodedRow(ids, np.where(supervised, ids, X).astype(np.int32), (3,) * len(images), images)


def batch_of(*examples, text=8, images=0, registers=2):
    pixels = [np.full((len(e.images), 3, 4, 4), 7 + i, np.uint8) if e else None for i, e in enumerate(examples)]
    return build_batch(examples, pixels, registers, image_size=4, shape=Shape(text, images, 3 * images))


def test_a_caption_is_predicted_from_the_last_register_on():
    # Template plain: BOS, image, caption, newline.
    batch = batch_of(example([1, IMAGE, 5, 6, 13], [0, 0, 1, 1, 1], ("a",)), text=4, images=1)
    assert batch.sequence.kinds.tolist() == [[T, V, V, V, R, R, T, T, T, P, P, P, P, P, P, P]]
    assert batch.sequence.index[0, :9].tolist() == [1, 0, 1, 2, 0, 1, 5, 6, 13]
    assert batch.targets[0].tolist() == [X, X, X, X, X, 5, 6, 13, X, X, X, X, X, X, X, X]
    assert batch.sequence.positions.tolist() == [list(range(16))]


def test_without_registers_it_is_the_last_visual_token():
    batch = batch_of(example([1, IMAGE, 5, 6], [0, 0, 1, 1], ("a",)), text=5, images=1, registers=0)
    assert batch.sequence.kinds.tolist() == [[T, V, V, V, T, T, P, P]]
    assert batch.targets.tolist() == [[X, X, X, 5, 6, X, X, X]]


def test_what_stands_before_an_image_predicts_nothing():
    batch = batch_of(example([1, 5, IMAGE, 6, 7], [0, 1, 0, 0, 1], ("a",)), text=4, images=1, registers=1)
    assert batch.sequence.kinds[0].tolist() == [T, T, V, V, V, R, T, T]
    assert batch.targets[0].tolist() == [5, X, X, X, X, X, 7, X]


def test_a_row_of_text_only_has_no_images():
    batch = batch_of(example([1, 5, 6], [0, 0, 1]), text=8)
    assert batch.pixels is None
    assert batch.sequence.kinds.tolist() == [[T, T, T, P, P, P, P, P]]
    assert batch.targets.tolist() == [[X, 6, X, X, X, X, X, X]]


def test_a_row_that_fills_its_shape():
    batch = batch_of(example([1, IMAGE, 5, 6], [0, 0, 1, 1], ("a",)), text=3, images=1)
    assert (batch.sequence.kinds != P).all()
    assert batch.targets[0].tolist() == [X, X, X, X, X, 5, 6, X]


def test_a_filler_row_is_nothing_at_all():
    batch = batch_of(None, example([IMAGE, 5], [0, 1], ("a",)), text=3, images=1)
    assert (batch.sequence.kinds[0] == P).all()
    assert (batch.targets[0] == X).all()
    assert (batch.pixels[0] == 0).all()
    assert (batch.pixels[1] == 8).all()


def test_image_places_that_a_row_leaves_empty_are_black():
    batch = batch_of(example([IMAGE, 5], [0, 1], ("a",)), text=6, images=2)
    assert batch.pixels.shape == (1, 2, 3, 4, 4)
    assert (batch.pixels[0, 0] == 7).all()
    assert (batch.pixels[0, 1] == 0).all()


def test_normalised_pixels_stay_float32():
    rows = example([1, IMAGE, 5], [0, 0, 1], ("a",)), example([1, IMAGE, IMAGE, 6, 7], [0, 0, 0, 1, 1], ("b", "c"))
    pixels = [np.zeros((len(row.images), 3, 4, 4), np.float32) for row in rows]
    batch = build_batch(rows, pixels, registers=2, image_size=4, shape=Shape(3, 2, 6))
    assert batch.pixels.shape == (2, 2, 3, 4, 4)
    assert batch.pixels.dtype == np.float32


def source_of(folder, rows, batch=4, parts=1, registers=2, **more):
    reader, index = opened(folder, rows)
    schedule = Schedule(index, batch, 0, registers, parts)
    return BatchSource(reader, schedule, registers, image_size=SIZE, aspect="pad", **more)


def test_each_part_of_a_batch_has_the_rows_and_pixels_of_its_step(tmp_path):
    source = source_of(tmp_path, rows_of_every_kind(), parts=2)
    for step in range(source.schedule.steps_per_epoch):
        found, (shapes, rows) = source[step], source.schedule.at(step)
        assert found.shapes == shapes
        np.testing.assert_array_equal(found.rows, rows)
        for part, shape, of_part in zip(found.parts, shapes, rows, strict=True):
            assert (part.sequence.kinds == V).sum(axis=1).max() <= shape.images * TOKENS_PER_IMAGE
            for at, row in enumerate(of_part):
                if row == FILLER:
                    continue
                its = source.reader[row]
                assert (part.targets[at] != X).sum() == (its.targets[1:] != X).sum()
                for place, path in enumerate(its.images):
                    pixels = preprocess(source.reader.records.open(path), SIZE, "pad")
                    np.testing.assert_array_equal(part.pixels[at, place], pixels)


def test_a_row_with_an_unreadable_image_becomes_a_filler_and_is_named(tmp_path):
    rows = [image_row(f"{i}.png", 5) for i in range(4)]
    rows[2]["image"] = "nowhere.jpg"
    source = source_of(tmp_path, rows)
    _, _, found, (part,), bad = source[0]
    assert [row for row, _ in bad] == [2]
    assert "nowhere.jpg" in bad[0][1]
    (at,) = np.flatnonzero(found[0] == 2)
    assert (part.sequence.kinds[at] == P).all()
    assert (part.targets[at] == X).all()
    assert all((part.sequence.kinds[other] == V).any() for other in range(4) if other != at)


def test_hosts_must_divide_the_rows_of_each_part(tmp_path):
    with pytest.raises(UserError, match="batch_size=4 in 2 parts does not divide over 4 hosts: choose a multiple of 8"):
        source_of(tmp_path, rows_of_every_kind(), parts=2, hosts=4)


@pytest.mark.parametrize("registers", [0, 4])
def test_each_row_draws_a_number_that_all_hosts_agree_on(tmp_path, registers):
    """Of registers after each image, or of its visual tokens: the first ones. Read again, a step is the same."""
    kind, given, draws = (R, registers, (1, 3, 4)) if registers else (V, TOKENS_PER_IMAGE, (1, 2, TOKENS_PER_IMAGE))
    source = source_of(tmp_path, rows_of_every_kind(), parts=2, registers=registers, draws=draws)
    hosts = [replace(source, host=host, hosts=2) for host in range(2)]
    found, steps = set(), range(2 * source.schedule.steps_per_epoch)
    for step in reversed(steps):
        for part, of_part, *shares in zip(*(its[step].parts for its in (source, source, *hosts)), strict=True):
            jax.tree.map(np.testing.assert_array_equal, part, of_part)
            for name in ("kinds", "index", "positions"):
                joined = np.concatenate([getattr(share.sequence, name) for share in shares])
                np.testing.assert_array_equal(getattr(part.sequence, name), joined, err_msg=name)
            for kinds, index in zip(part.sequence.kinds, part.sequence.index, strict=True):
                its = index[kinds == kind] if registers else index[kinds == kind] % given
                images = int((its == 0).sum())
                count = len(its) // max(images, 1)
                assert its.tolist() == [*range(count)] * images
                found |= {count} if images else set()
    assert found == set(draws)
