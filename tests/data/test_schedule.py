import pickle

import numpy as np
import pytest

from victor_jax.data.schedule import FILLER, Index, Schedule
from victor_jax.errors import UserError


def sums(rows):
    return np.arange(rows, dtype=np.uint32)


def index_of(rows=203, seed=0):
    """Rows with no, one or two images; rows 5 and 50 are bad."""
    rng = np.random.default_rng(seed)
    text_lengths = rng.integers(5, 120, rows).astype(np.int32)
    image_counts = rng.choice([0, 1, 1, 1, 2], rows).astype(np.int32)
    text_lengths[[5, 50]] = 0
    return Index(text_lengths, image_counts, image_counts * 10, [(5, "empty"), (50, "empty")], sums(len(text_lengths)))


def schedule(index=None, batch=8, seed=7, parts=2, **more):
    return Schedule(index or index_of(), batch, seed, registers=2, parts=parts, **more)


def epoch(its, number):
    return [its.at(step) for step in range(number * its.steps_per_epoch, (number + 1) * its.steps_per_epoch)]


def parts_of(batches):
    return [part for shapes, rows in batches for part in zip(shapes, rows, strict=True)]


def rows_of(batches):
    rows = np.concatenate([rows.ravel() for _, rows in batches])
    return rows[rows != FILLER]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_good_row_once_per_epoch(parts):
    its = schedule(parts=parts)
    expected = np.setdiff1d(np.arange(203), [5, 50])
    for number in range(3):
        assert np.sort(rows_of(epoch(its, number))).tolist() == expected.tolist()


def test_the_next_epoch_has_other_batches():
    its = schedule()
    batches = [{frozenset(rows.ravel().tolist()) for _, rows in epoch(its, number)} for number in range(2)]
    assert len(batches[0] & batches[1]) <= 1


def test_another_seed_has_other_batches():
    first, second = (rows_of(epoch(schedule(seed=seed), 0)).tolist() for seed in (1, 2))
    assert first != second


def test_every_row_fits_its_part():
    index = index_of()
    for shape, rows in parts_of(epoch(schedule(index), 0)):
        good = rows[rows != FILLER]
        assert (index.text_lengths[good] <= shape.text).all()
        assert (index.image_counts[good] <= shape.images).all()
        assert (index.visual_lengths[good] <= shape.visual).all()


def test_text_only_rows_never_share_a_part_with_images():
    index = index_of()
    for shape, rows in parts_of(epoch(schedule(index), 0)):
        has_images = index.image_counts[rows[rows != FILLER]] > 0
        assert has_images.all() if shape.images else not has_images.any()


def test_fewer_fillers_than_a_part_with_images_and_without():
    its = schedule()
    fillers = {False: 0, True: 0}
    for shape, rows in parts_of(epoch(its, 0)):
        fillers[shape.images > 0] += int((rows == FILLER).sum())
    assert all(count < its.part_rows for count in fillers.values())


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_all_batches_but_the_last_have_all_parts(parts):
    """And the last one is not filled up with empty parts."""
    batches = epoch(schedule(parts=parts), 0)
    assert [len(rows) for _, rows in batches[:-1]] == [parts] * (len(batches) - 1)
    assert all((rows != FILLER).any(axis=1).all() for _, rows in batches)


def test_a_step_is_the_same_whoever_asks_and_in_whatever_order():
    its = schedule()
    steps = [0, its.steps_per_epoch + 3, 3, 40 * its.steps_per_epoch, 1]
    expected = [its.at(step) for step in steps]
    for other in (pickle.loads(pickle.dumps(its)), schedule()):
        for step, (shapes, rows) in reversed(list(zip(steps, expected, strict=True))):
            found_shapes, found_rows = other.at(step)
            assert found_shapes == shapes
            np.testing.assert_array_equal(found_rows, rows)


def test_the_order_is_the_same_in_every_version_of_numpy():
    index = Index(np.full(8, 10, np.int32), *np.zeros((2, 8), np.int32), [], sums(8))
    its = Schedule(index, 4, 3, 0)
    assert [its.at(step)[1].tolist() for step in range(2)] == [[[6, 1, 5, 2]], [[7, 4, 3, 0]]]


def test_only_chosen_rows_take_part():
    its = schedule(rows=np.array([3, 5, 7, 11]))  # 5 is bad
    assert sorted(rows_of(epoch(its, 0)).tolist()) == [3, 7, 11]


def test_digest_tells_different_data_and_settings_apart():
    changed = index_of()
    changed.text_lengths[0] += 1
    reworded = index_of()
    reworded.checksums[7] += 1
    others = schedule(seed=8), schedule(parts=1), schedule(changed), schedule(reworded)
    digests = [schedule().digest, *(other.digest for other in others)]
    assert len(set(digests)) == 5
    assert schedule().digest == digests[0]


def test_no_rows_are_an_error():
    with pytest.raises(UserError, match="no row"):
        schedule(rows=np.array([5, 50]))


def test_parts_must_divide_the_batch():
    with pytest.raises(UserError, match="batch_size=8 does not divide into 3 parts"):
        schedule(parts=3)


def length_mix():
    """Text tokens under vicuna_v1 of 665,000 rows like those of llava_v1_5_mix665k, source by source.

    45 tokens stand around the first turn (system prompt, roles). The numbers of turns and the tokens of a turn are
    estimates from the public data sets behind the sources, since no list of lengths is published.
    """
    rng = np.random.default_rng(0)

    def conversations(rows, mean, most, tokens, spread):
        count = np.clip(rng.poisson(mean - 1, rows) + 1, 1, most)
        return 45 + count * tokens + rng.normal(0, spread, rows) * np.sqrt(count)

    def one_turn(rows, tokens, spread):
        return rng.lognormal(np.log(tokens), spread, rows)

    with_image = [
        conversations(57_000, mean=4.5, most=12, tokens=57, spread=15),  # LLaVA-Instruct, conversation
        one_turn(23_000, 175, 0.2),  # LLaVA-Instruct, detail
        one_turn(78_000, 275, 0.2),  # LLaVA-Instruct, complex reasoning
        conversations(83_000, mean=5.4, most=30, tokens=20, spread=4),  # VQAv2: all questions of an image
        conversations(72_000, mean=13, most=40, tokens=23, spread=4),  # GQA
        one_turn(9_000, 75, 0.1),  # OKVQA
        conversations(80_000, mean=5, most=8, tokens=24, spread=4),  # OCR-VQA
        one_turn(66_000, 98, 0.15),  # A-OKVQA, with its choices
        one_turn(22_000, 105, 0.25),  # TextCaps
        conversations(48_000, mean=5, most=20, tokens=50, spread=5),  # RefCOCO: boxes are spelt out
        conversations(86_000, mean=10, most=14, tokens=50, spread=6),  # VG
    ]
    text_only = one_turn(41_000, 1100, 0.9)  # ShareGPT, much of it cut at 2048
    text = np.concatenate([*with_image, text_only]).round()
    images = np.ones(len(text), np.int32)
    images[-len(text_only) :] = 0
    return Index(
        np.clip(text, 50, np.where(images, 2048 - 576, 2048)).astype(np.int32),
        images,
        images * 576,
        [],
        sums(len(text)),
    )


@pytest.fixture(scope="module")
def mix():
    index = length_mix()
    return lambda parts: (index, Schedule(index, 128, 0, registers=8, parts=parts))


@pytest.mark.parametrize(("parts", "programs", "padding"), [(1, 16, 0.12), (4, 30, 0.07), (8, 40, 0.055)])
def test_how_much_is_padding_on_a_mix_like_llavas(mix, parts, programs, padding):
    """Of the text positions; smaller parts are worth more programs. The figures of docs/training.md."""
    index, its = mix(parts)
    assert len(index.text_lengths) == 665_000
    assert len(its.stretches) <= programs
    assert its.padding_share <= padding
    computed = sum(its.part_rows * shape.text for shape, _ in parts_of(epoch(its, 0)))
    assert its.padding_share == pytest.approx(1 - index.text_lengths.sum(dtype=np.int64) / computed)


def test_the_order_of_a_large_data_set_is_small_on_its_way_to_a_worker(mix):
    assert len(pickle.dumps(mix(8)[1])) < 16e6
