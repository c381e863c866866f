"""A method with several plans runs one of them in each step of its training."""

from collections import Counter

import numpy as np
import pytest
import small_run
from test_step import batch, params

from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.training import setup
from victor_jax.weights import fresh
from victor_jax.weights.place import sources

SHAPE = Shape(12, 1, 4)


@pytest.fixture(scope="module")
def run():
    return small_run.small_run({"compression": "visor:sampled"})


def test_plans_are_drawn_by_the_seed_and_the_step(run):
    """All as often, about; the same again after a stop, on every host."""
    same, other = (
        small_run.small_run({"compression": "visor:sampled", "seed": seed}) for seed in (run.settings.seed, 1)
    )
    drawn, again, elsewhere = ([one.sampled(number) for number in range(200)] for one in (run, same, other))
    assert drawn == again
    assert drawn != elsewhere
    counts = Counter(drawn)
    assert counts.keys() == set(run.module.method.sampled)
    assert min(counts.values()) > 70
    long = Shape(12, 1, 64)
    costs = [setup.part_cost(run, long, plan).flops for plan in run.module.method.sampled]
    assert costs[0] < costs[1] == setup.part_cost(run, long).flops


def test_a_step_is_that_of_its_plan_alone(run, tmp_path):
    """Losses, and gradients of what both have; what the plan leaves out has none."""
    start = setup.open_checkpoint(small_run.write_start(tmp_path))
    alone = small_run.small_run({"compression": "visor:self=0,cross=1"})
    (found, rows), (wanted, rows_alone) = (
        summed(one, start, plan) for one, plan in ((run, run.module.method.sampled[0]), (alone, None))
    )
    np.testing.assert_allclose(rows, rows_alone, rtol=1e-5)
    for name, gradient in per_layer(run, found.grads).items():
        np.testing.assert_allclose(gradient, per_layer(alone, wanted.grads)[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("spec", ["visor:policy", "dyvte:exits=1"])
def test_what_chooses_is_not_trained_here(spec):
    """A model with one of random numbers would come out."""
    with pytest.raises(UserError, match=f"config.compression={spec} chooses a plan for each row"):
        setup.start_tensors(small_run.small_run({"compression": spec}), fresh.checkpoint(small_run.CONFIG, 0))


def summed(run, start, plan):
    train, frozen = params(run, start)
    sizes = setup.sizes_of(run, SHAPE, plan)
    return run.accumulate(train, frozen, run.zeros(), batch(registers=0), 0, 0, sizes=sizes, plan=plan)


def per_layer(run, grads):
    """By per-layer name, since the two stack their layers differently."""
    return {
        name: np.asarray(leaf[number] if len(of) > 1 or of != [path] else leaf)
        for path, leaf in grads.items()
        for of in [sources(path, run.module)]
        for number, name in enumerate(of)
    }
