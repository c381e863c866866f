"""What must not come back into the programs for a GPU: copied weights, lost donation, attention without its kernel."""

import importlib.util

import pytest
from shallow import SHAPE, peak_of, run_of, step_of

from victor_jax.analysis import flops, topology, traffic
from victor_jax.analysis.answering import Asked
from victor_jax.cli import plan_pod
from victor_jax.cli.plan_answering import compiled_for
from victor_jax.training.memory import bytes_of

if importlib.util.find_spec("jax_cuda13_plugin") is None:
    pytest.skip("the compiler for GPUs (jax[cuda13]) is not installed: make accelerators", allow_module_level=True)

H200 = topology.parse("h200")
VICTOR = "victor:registers=8,layer=3"


@pytest.fixture(scope="module")
def answers():
    """16 questions to Victor-8 of 7B."""
    return compiled_for(H200, "7b", VICTOR, Asked(rows=16))


def test_a_new_token_copies_neither_weights_nor_caches(answers):
    assert [copy.argument or copy.name for copy in answers.of_token.copies] == []


def test_a_new_token_joins_no_weights(answers):
    """Not within a product either: a kernel of cuBLAS, which autotuning may choose, would need them copied."""
    joined = [run.instruction for run in answers.decode.program.runs() if run.instruction.opcode == "concatenate"]
    assert [one.source for one in joined if one.arrays[0].bytes >= traffic.LEAST] == []


def test_prefill_copies_no_weight(answers):
    assert [copy.argument for copy in answers.of_prefill.copies if copy.argument.startswith("params")] == []


def test_decoding_needs_no_memory_beside_weights_and_caches(answers):
    assert answers.decode.temporaries < 0.1 * topology.GIB


def test_caches_are_updated_in_place(answers):
    assert answers.decode.reused >= flops.cache_bytes(answers.module, answers.asked.rows, answers.slots)


def test_every_layer_of_prefill_runs_cudnn(answers):
    vision, language = answers.module.config.vision, answers.module.config.language
    assert answers.prefill.text.count('custom_call_target="__cudnn$fmha') == vision.depth - 1 + language.depth


def test_what_is_computed_is_what_the_closed_form_says(answers):
    assert answers.of_prefill.flops == pytest.approx(answers.of_prefill.least_flops, rel=0.01)
    assert answers.of_token.flops == pytest.approx(answers.of_token.least_flops, rel=0.01)


def test_a_token_moves_little_more_than_weights_and_caches(answers):
    assert answers.of_token.bytes < 1.1 * answers.of_token.least_bytes


@pytest.mark.parametrize("name", ["a100", "h100", "h200x8", "b200"])
def test_every_gpu_compiles_and_calls_cudnn(name):
    found = compiled_for(topology.parse(name), "small", VICTOR.replace("3", "1"), Asked(rows=8, room=8))
    assert "__cudnn$fmha" in found.prefill.text
    assert found.decode.text


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    """The two programs of a step in one part."""
    return step_of(H200)


def test_parts_cost_no_memory(step):
    run, _, _ = step
    in_parts = plan_pod.plan(run_of(H200, 4), "usual", SHAPE, H200.chip.usable)
    assert in_parts.bytes <= 1.05 * peak_of(*step)
    state = bytes_of((run.state, run.frozen, run.sums))
    assert in_parts.bytes < state + 4 * topology.GIB, "more than activations beside the state and one sum of gradients"


def test_sums_and_state_are_updated_in_place(step):
    run, accumulate, update = step
    assert accumulate.reused >= bytes_of(run.sums)
    assert update.reused >= bytes_of(run.state)


def test_training_runs_cudnn_forward_and_backward(step):
    _, accumulate, _ = step
    assert 'custom_call_target="__cudnn$fmhaSoftmax"' in accumulate.text
    assert 'custom_call_target="__cudnn$fmhaSoftmaxBackward"' in accumulate.text
