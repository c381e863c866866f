"""Elastic Victor: trained with a drawn number of registers in each row, asked with any number of them."""

import shutil

import field
import numpy as np
import pytest
import small_run
import talking
from flax.traverse_util import unflatten_dict

import victor_jax
from victor_jax.compression.plan import Kind
from victor_jax.compression.spec import parse
from victor_jax.data.batches import build_batch
from victor_jax.inference import programs
from victor_jax.inference.buckets import room_for
from victor_jax.models.sizes import SIZES
from victor_jax.training.setup import Run
from victor_jax.weights.read import open_checkpoint

STEPS = 4


def elastic(registers):
    return f"elastic:registers={registers},layer=1"


@pytest.mark.parametrize(("most", "drawn"), [(1, (1,)), (8, (1, 2, 4, 8)), (6, (1, 2, 4, 6))])
def test_powers_of_two_up_to_all_of_them(most, drawn):
    method = parse(f"elastic:registers={most},layer=3", SIZES["7b"])
    assert (method.draws, method.registers) == (drawn, most)
    assert method.plan == parse(f"victor:registers={most},layer=3", SIZES["7b"]).plan


def test_a_row_with_fewer_registers_equals_a_model_that_has_only_them():
    """field draws the registers of a smaller model equal to the first ones of a larger."""
    rows, images = field.unlike_rows(elastic(4))
    module, params = field.model(elastic(4))
    shape, drawn = room_for(rows), np.array([1, 3, 2])
    batch = build_batch(rows, images, 4, field.CONFIG.vision.image_size, shape, drawn)
    sizes = module.method.plan.sizes(shape.counts(4))
    most = max(row.text_length for row in rows)
    found = programs.full_pass(
        unflatten_dict(params, sep="/"), batch, module=module, sizes=sizes, end=programs.TextLogits(most)
    )
    for number, count in enumerate(drawn[:2]):  # the third row has no image
        (alone,) = field.logits(f"victor:registers={count},layer=1", rows[number : number + 1], [images[number]])
        np.testing.assert_allclose(found[number][: len(alone)], alone, atol=field.TOLERANCE, rtol=0)


def test_each_row_of_a_training_step_draws_its_number_and_a_resumed_run_the_same(tmp_path, monkeypatch):
    """train.py from end to end, but for the arithmetic of its steps: the registers of each row that a step is given,
    and once more after a kill that left the checkpoint of half of the steps."""
    seen = {}

    def watched(run, state, frozen, parts, number, rate):
        counts = [(part.sequence.kinds == Kind.REGISTER).sum(axis=1) for part, _ in parts]
        seen.setdefault(number, []).append(np.concatenate(counts).tolist())
        said = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": rate, "supervised": 1, "bad": False}
        said |= {"row_loss": [np.ones(len(of_part)) for of_part in counts]}
        return state, {name: np.asarray(value) for name, value in said.items()}

    monkeypatch.setattr(Run, "step", watched)
    start, data = small_run.write_start(tmp_path / "start"), small_run.write_data(tmp_path / "data")
    changes = small_run.overrides(start, data, compression=elastic(8), total_steps=STEPS, checkpoint__every=STEPS // 2)
    small_run.run_here(tmp_path / "run", changes, recipe="pretrain")
    drawn = [seen[step][0] for step in range(STEPS)]
    assert {count for of_step in drawn for count in of_step} == {1, 2, 4, 8}
    assert all(len(set(of_step)) > 1 for of_step in drawn)  # a row's draw, not a step's
    assert len(set(map(tuple, drawn))) == STEPS
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    small_run.run_here(tmp_path / "run", changes, recipe="pretrain")
    assert [seen[step] for step in range(STEPS // 2)] == [[of_step] for of_step in drawn[: STEPS // 2]]
    assert [seen[step] for step in range(STEPS // 2, STEPS)] == [[of_step] * 2 for of_step in drawn[STEPS // 2 :]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    field.learns(elastic(8), folder)
    return folder / "hf"


def test_a_trained_model_serves_any_smaller_number_by_its_written_form(trained):
    registers = open_checkpoint(trained).own["compression/registers"].load()
    np.testing.assert_array_equal(victor_jax.load(trained, elastic(3), "float32").registers, registers[:3])


@pytest.mark.parametrize("asked", [elastic(16), "victor:registers=3,layer=1"])
def test_what_was_not_trained_is_refused(trained, asked):
    """More registers than there are; and Victor's registers mean something else, even in a number that is there."""
    message = rf"was trained with 8 registers .{elastic(8)}., {asked} asks for \d+ registers: "
    with pytest.raises(victor_jax.UserError, match=message):
        victor_jax.load(trained, asked)


def test_fewer_registers_of_plain_victor_stay_an_error(tmp_path):
    with pytest.raises(victor_jax.UserError, match=r"was trained with 2 registers .* asks for 1 registers: "):
        victor_jax.load(talking.saved(tmp_path / "model", "victor:registers=2,layer=1"), "victor:registers=1,layer=1")
