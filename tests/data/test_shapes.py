import itertools

import numpy as np
import pytest

from victor_jax.compression.spec import parse
from victor_jax.data.shapes import Shape, Stretch, choose_stretches
from victor_jax.models.sizes import SIZES


def chosen(text_lengths, image_counts=0, per_image=16, rows=4, **more):
    """`rows`: of a micro-batch."""
    text_lengths = np.array(text_lengths)
    image_counts = np.broadcast_to(np.array(image_counts), text_lengths.shape)
    lengths = np.stack([text_lengths, image_counts, image_counts * per_image], axis=1)
    lengths = lengths[np.lexsort((text_lengths, image_counts))]
    with_images = lengths[:, 1] > 0
    whole = [filled(lengths[has_images], rows) for has_images in (~with_images, with_images)]
    return choose_stretches(np.concatenate(whole), 0, rows, **more)


def shapes(*arguments, **more):
    return [stretch.shape for stretch in chosen(*arguments, **more)]


def filled(lengths, rows):
    return np.concatenate([np.zeros((-len(lengths) % rows, 3), int), lengths])


def up(length):
    return -(-max(length, 1) // 8) * 8


def least_cost(text_lengths, rows, compile_cost):
    """By trying every way to cut the sorted rows into stretches of whole micro-batches."""
    lengths = filled(np.array([[length, 0, 0] for length in sorted(text_lengths)]), rows)[:, 0]
    total = len(lengths) // rows
    costs = []
    for stretches in range(1, total + 1):
        for cuts in itertools.combinations(range(1, total), stretches - 1):
            parts = [lengths[start * rows : end * rows] for start, end in itertools.pairwise([0, *cuts, total])]
            padding = sum(int((up(int(part.max())) - part).sum()) for part in parts)
            costs.append(padding + stretches * compile_cost * lengths.sum() / total)
    return min(costs)


@pytest.mark.parametrize("compile_cost", [0, 0.1, 0.5, 3])
def test_no_other_choice_of_stretches_costs_less(compile_cost):
    lengths = np.round(np.random.default_rng(0).lognormal(4, 0.8, 37)).astype(int)
    found = chosen(lengths, compile_cost=compile_cost)
    padding = sum(stretch.computed(4) - stretch.text for stretch in found)
    cost = padding + len(found) * compile_cost * lengths.sum() / 10
    assert cost == pytest.approx(least_cost(lengths, 4, compile_cost))


def test_one_program_is_enough_for_rows_of_one_length():
    (stretch,) = chosen([24] * 12, compile_cost=0)
    assert stretch == Stretch(Shape(24, 0, 0), micro_batches=3, text=24 * 12)
    assert stretch.padding_share(4) == 0


def test_another_program_must_spare_more_than_its_compile():
    """Twenty micro-batches with half of their positions empty are worth those of nine, and not those of eleven."""
    lengths = [48] * 80 + [96] * 80
    mean = 72  # positions of a row: one program computes 20 * 48 too many, which are those of 13.3 micro-batches
    assert len(chosen(lengths, compile_cost=20 * 48 / mean - 1)) == 2
    assert len(chosen(lengths, compile_cost=20 * 48 / mean + 1)) == 1


def test_text_fills_the_row_up_to_the_multiple_images_and_all():
    (stretch,) = chosen([13] * 4, image_counts=1, per_image=11)
    assert stretch.shape == Shape(13, 1, 11)  # 13 + 11 = 24


def test_rows_with_and_without_images_have_shapes_of_their_own():
    assert shapes([40] * 8, image_counts=[0, 1] * 4) == [Shape(40, 0, 0), Shape(40, 1, 16)]


def test_image_counts_share_a_shape_where_that_is_cheaper_than_a_compile():
    lengths, counts = [40] * 48, [0, 1, 2, 2, 3, 3] * 8
    assert [shape.images for shape in shapes(lengths, counts, compile_cost=0)] == [0, 1, 2, 3]
    assert [shape.images for shape in shapes(lengths, counts, compile_cost=1.1)] == [0, 2, 3]
    assert [shape.images for shape in shapes(lengths, counts, compile_cost=100)] == [0, 3]


def test_fillers_are_among_the_shortest_rows():
    found = chosen([16, 16, 16, 96, 96, 96, 96], compile_cost=0)
    assert [(stretch.shape.text, stretch.micro_batches) for stretch in found] == [(16, 1), (96, 1)]


def test_less_than_a_micro_batch_of_rows():
    assert chosen([30]) == [Stretch(Shape(32, 0, 0), micro_batches=1, text=30)]


def test_stage_lengths_are_those_of_the_plan():
    def lengths(spec, shape):
        method = parse(spec, SIZES["7b"])
        return method.plan.stage_lengths(method.plan.sizes(shape.counts(method.registers)))

    assert lengths("full", Shape(40, 2, 18)) == (64,)
    assert lengths("victor:registers=3,layer=1", Shape(40, 2, 18)) == (64, 48)
    assert lengths("victor:registers=3,layer=1", Shape(40, 0, 0)) == (40, 40)
