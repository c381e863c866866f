import itertools

import numpy as np
import pytest

from victor_jax.compression.spec import parse
from victor_jax.data.shapes import Shape, choose_layouts
from victor_jax.models.sizes import SIZES


def chosen(text_lengths, image_counts=0, per_image=16, batch=4, **more):
    text_lengths = np.array(text_lengths)
    image_counts = np.broadcast_to(np.array(image_counts), text_lengths.shape)
    rows = np.stack([text_lengths, image_counts, image_counts * per_image], axis=1)
    rows = rows[np.lexsort((text_lengths, image_counts))]
    with_images = rows[:, 1] > 0
    whole = [filled(rows[has_images], batch) for has_images in (~with_images, with_images)]
    return choose_layouts(np.concatenate(whole), 0, batch, **more)


def filled(rows, batch):
    return np.concatenate([np.zeros((-len(rows) % batch, 3), int), rows])


def up(length):
    return -(-max(length, 1) // 8) * 8


def least_padding(text_lengths, batch, parts, layouts):
    """By trying every way to cut the sorted rows into stretches of whole batches."""
    lengths = filled(np.array([[length, 0, 0] for length in sorted(text_lengths)]), batch)[:, 0]
    batches = len(lengths) // batch
    costs = []
    for cuts in itertools.combinations(range(1, batches), layouts - 1):
        cost = 0
        for start, end in itertools.pairwise([0, *cuts, batches]):
            for part in np.split(lengths[start * batch : end * batch], parts):
                cost += int((up(int(part.max())) - part).sum())
        costs.append(cost)
    return min(costs)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("layouts", [1, 2, 3])
def test_no_other_choice_of_lengths_pads_less(parts, layouts):
    lengths = np.round(np.random.default_rng(parts).lognormal(4, 0.8, 37)).astype(int)
    found = chosen(lengths, parts=parts, at_most=layouts, enough=0)
    padding = sum(layout.computed(4) - layout.text for layout in found)
    assert padding == least_padding(lengths, 4, parts, layouts)


def test_one_program_is_enough_for_rows_of_one_length():
    (layout,) = chosen([24] * 12)
    assert layout.parts == (Shape(24, 0, 0),)
    assert layout.batches == 3
    assert layout.padding_share(4) == 0


def test_a_few_percent_of_padding_are_not_worth_another_program():
    assert len(chosen([96] * 20 + [100] * 20, enough=0.1)) == 1
    assert len(chosen([96] * 20 + [100] * 20, enough=0.01)) == 2


def test_text_fills_the_row_up_to_the_multiple_images_and_all():
    (layout,) = chosen([13] * 4, image_counts=1, per_image=11)
    assert layout.parts == (Shape(13, 1, 11),)  # 13 + 11 = 24


def test_rows_with_and_without_images_have_shapes_of_their_own():
    layouts = chosen([40] * 8, image_counts=[0, 1] * 4)
    assert [layout.parts for layout in layouts] == [(Shape(40, 0, 0),), (Shape(40, 1, 16),)]


def test_image_counts_share_a_shape_when_programs_run_out():
    layouts = chosen([40] * 24, image_counts=[0, 1, 2, 2, 3, 3] * 4, at_most=3)
    assert [(layout.parts[0].images, layout.batches) for layout in layouts] == [(0, 1), (2, 3), (3, 2)]


def test_fillers_stand_among_the_shortest_rows():
    layouts = chosen([16, 16, 16, 96, 96, 96, 96], enough=0)
    assert [(layout.parts[0].text, layout.batches) for layout in layouts] == [(16, 1), (96, 1)]


def test_less_than_a_batch_of_rows():
    (layout,) = chosen([30], batch=4, parts=2)
    assert layout.batches == 1
    assert [part.text for part in layout.parts] == [8, 32]


def test_a_part_has_room_for_the_images_of_its_own_rows():
    (layout,) = chosen([40] * 4, image_counts=[1, 1, 2, 3], parts=2, at_most=1)
    assert layout.parts == (Shape(40, 1, 16), Shape(40, 3, 48))


def test_stage_lengths_are_those_of_the_plan():
    def lengths(spec, shape):
        method = parse(spec, SIZES["7b"])
        return method.plan.stage_lengths(method.plan.sizes(shape.counts(method.registers)))

    assert lengths("full", Shape(40, 2, 18)) == (64,)
    assert lengths("victor:registers=3,layer=1", Shape(40, 2, 18)) == (64, 48)
    assert lengths("victor:registers=3,layer=1", Shape(40, 0, 0)) == (40, 40)
