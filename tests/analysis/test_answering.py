"""What is planned of answering, with CPUs in place of the devices that are not there."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from victor_jax.analysis import flops, topology
from victor_jax.analysis.answering import Asked, answering
from victor_jax.cli import plan_answering
from victor_jax.compression.spec import parse
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule
from victor_jax.sharding.mesh import make_mesh

H200 = topology.parse("h200")
SMALL = SIZES["small"]
ASKED = Asked(rows=6, text=60, room=8)


def planned(place):
    module = VLMModule(SMALL, parse("victor:registers=8,layer=1", SMALL), jnp.dtype("float32"))
    return answering(module, place, ASKED)


@pytest.fixture(scope="module")
def found():
    return planned(jax.devices()[0])


def test_rows_have_the_length_that_load_gives_them(found):
    assert found.lengths == (64 + 16 + 8, 64 + 8)  # text up to a multiple of 8, patches, registers


def test_what_the_program_computes_is_the_closed_form(found):
    assert found.of_token.flops == found.of_token.least_flops
    assert found.of_prefill.flops == pytest.approx(found.of_prefill.least_flops, rel=0.002)


def test_every_weight_and_cache_is_moved_once_at_the_least(found):
    assert found.of_token.bytes > found.of_token.least_bytes
    assert found.of_prefill.bytes > found.of_prefill.least_bytes


def test_caches_are_reused_for_results(found):
    assert found.decode.reused >= flops.cache_bytes(found.module, ASKED.rows, found.slots)


def test_an_answer_takes_a_prefill_and_a_turn_for_each_further_token(found):
    chip = H200.chip
    one, two, many = (found.seconds(chip, tokens) for tokens in (1, 2, 9))
    assert many - one == pytest.approx(8 * (two - one))
    assert one == max(found.of_prefill.seconds(chip).values())


def test_rows_are_filled_up_and_cut_over_the_mesh(found):
    cut = planned(make_mesh(data=4, tensor=2))
    assert cut.of_token.flops == pytest.approx(found.of_token.flops * 8 / 6 / 8)  # 8 rows instead of 6
    assert {one.kind for one in cut.of_token.collectives} >= {"all-reduce"}
    assert found.of_token.collectives == []


def test_the_report_says_whether_it_fits_and_what_the_bound_assumes(found):
    lines = plan_answering.report(found, H200).splitlines()
    assert any(line.split() == ["fits", "yes", "yes"] for line in lines)
    assert any(line.startswith("images per second at the peaks") and line.endswith("answers of 8") for line in lines)
    assert any("A bound, not a measurement" in line for line in lines)


def test_what_does_not_fit_says_so(found):
    full = replace(H200, chip=replace(H200.chip, usable=found.prefill.peak - 1))
    assert not plan_answering.fits(found, full.chip)
    assert any(line.split()[:2] == ["fits", "no"] for line in plan_answering.report(found, full).splitlines())


def test_the_command_refuses_what_it_cannot_plan():
    with pytest.raises(topology.UserError, match="--rows"):
        plan_answering.main(["--answering", "--topology=h200", "--rows=0"])
