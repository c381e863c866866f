"""What must not come back into the programs for a TPU: caches and weights put in another order at every call."""

import importlib.util

import pytest
from shallow import SHAPE, peak_of, run_of, step_of

from victor_jax.analysis import flops, topology, traffic
from victor_jax.analysis.answering import Asked
from victor_jax.cli import plan_pod
from victor_jax.cli.plan_answering import compiled_for
from victor_jax.training.memory import bytes_of

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("the compiler for TPUs (jax[tpu]) is not installed: make accelerators", allow_module_level=True)

SLICE = topology.parse("v5e:2x4")


@pytest.fixture(scope="module")
def answers():
    """64 questions to Victor-8 of 7B, each device with an eighth of every layer."""
    return compiled_for(SLICE, "7b", "victor:registers=8,layer=3", Asked(rows=64), mesh=(1, 8))


def test_decoding_needs_no_memory_beside_weights_and_caches(answers):
    assert answers.decode.temporaries < 0.1 * topology.GIB


def test_decoding_puts_nothing_in_another_order_before_it_begins(answers):
    program = answers.decode.program
    inside = {copy.name for copy in answers.of_token.copies}
    assert [copy for copy in traffic.copies(program) if copy.name not in inside] == []


def test_a_new_token_copies_no_cache(answers):
    assert [copy.argument for copy in answers.of_token.copies if copy.argument.startswith("caches")] == []


def test_a_new_token_slices_no_more_weights_than_the_quick_compiler_does(answers):
    """A full compile slices those of q, k and v into the memory beside the cores."""
    copied = {copy.argument.split("['")[-2].rstrip("']") for copy in answers.of_token.copies}
    assert copied <= {"q", "k", "v"}


def test_caches_are_updated_in_place(answers):
    assert answers.decode.reused >= flops.cache_bytes(answers.module, answers.asked.rows, answers.slots) / 8


def test_what_a_token_computes_is_what_the_closed_form_says(answers):
    assert answers.of_token.flops == pytest.approx(answers.of_token.least_flops, rel=0.02)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    """The two programs of a step in one part, each device with two rows and an eighth of every parameter."""
    return step_of(SLICE)


def test_parts_cost_no_memory(step):
    assert plan_pod.plan(run_of(SLICE, 4), "usual", SHAPE, SLICE.chip.usable).bytes <= 1.05 * peak_of(*step)


def test_sums_and_state_are_updated_in_place(step):
    run, accumulate, update = step
    assert accumulate.reused >= bytes_of(run.sums)
    assert update.reused >= bytes_of(run.state)
