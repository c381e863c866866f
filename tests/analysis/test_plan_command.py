"""The planning command: its arithmetic on a mesh of virtual devices, its messages, and the whole of it with libtpu."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from configs import finetune
from victor_jax import cli
from victor_jax.analysis import topology
from victor_jax.analysis.compiled import exhausted
from victor_jax.cli import plan_pod
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training import memory
from victor_jax.training.settings import read
from victor_jax.training.setup import abstract_part, make_run, part_cost, sizes_of

ROOT = Path(__file__).parents[2]
RECIPE = "registers=2,layer=1,runlocal"
LIBTPU = importlib.util.find_spec("libtpu") is not None
SLICE = topology.parse("v5e:2x4")
SHAPE = Shape(text=32, images=1, visual=SIZES["small"].features_per_image)
EXHAUSTED = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds "
    "available HBM (15.75G)."
)


def settings(**changes):
    config = finetune.get_config(RECIPE)
    config.update_from_flattened_dict(changes)
    return read(config.to_dict())


def run_of(**changes):
    return make_run(settings(**changes), SIZES["small"], make_mesh(fsdp=8))


@pytest.fixture(scope="module")
def planned():
    """The virtual devices stand in for the chips: what is read from the program is of the same kind."""
    return plan_pod.plan(run_of(), "usual", SHAPE, SLICE.chip.usable)


def test_the_kinds_of_memory_add_up_to_what_the_program_takes(planned):
    run, part, number = planned.run, abstract_part(planned.run, SHAPE), jax.ShapeDtypeStruct((), "int32")
    with jax.set_mesh(run.mesh):
        lowered = run.accumulate.lower(
            run.train, run.frozen, run.sums, part, number, number, sizes=sizes_of(run, SHAPE)
        )
    taken = lowered.compile().memory_analysis().argument_size_in_bytes
    held = sum(planned.arguments.values())
    # The numbers of step and part and the running loss are of no kind.
    assert held == pytest.approx(taken + memory.bytes_of(run.state.optimizer), rel=0.001)


def test_moments_take_twice_what_the_parameters_take(planned):
    held = planned.arguments
    assert held["optimizer"] == pytest.approx(2 * held["trained parameters"], rel=0.001)


def test_every_layer_is_gathered_over_all_devices(planned):
    gathers = [one for one in planned.collectives if one.kind == "all-gather" and one.times > 1]
    assert {one.devices for one in gathers} == {8}
    assert any("stages_1_" in one.source for one in gathers)


def test_a_step_is_bound_by_its_slowest_resource(planned):
    links = sum(one.wire_bytes for one in planned.collectives)
    slow_links = replace(SLICE, chip=replace(SLICE.chip, links=links / 1e6))
    assert plan_pod.times(planned, slow_links)["links"] == pytest.approx(1e6, rel=1e-12)
    assert "all at once".ljust(40) + "1000000.000".rjust(17) in plan_pod.report([planned], slow_links).splitlines()
    flops = part_cost(planned.run, SHAPE).flops
    assert plan_pod.times(planned, SLICE)["arithmetic"] == pytest.approx(flops / 8 / 197e12)
    # Collectives are written and read; so are the gradient, the parameter and two moments of each number that learns.
    moved = 2 * sum(one.bytes * one.times for one in planned.collectives) + 8 * planned.arguments["trained parameters"]
    assert plan_pod.times(planned, SLICE)["memory"] == pytest.approx(moved / 819e9, rel=0.001)


def test_parts_of_a_batch_do_the_work_of_the_whole(planned):
    part = part_cost(run_of(micro_batches=2, batch_size=16), SHAPE)
    assert 2 * part.model_flops == 2 * part_cost(planned.run, SHAPE).model_flops
    in_parts = plan_pod.plan(run_of(micro_batches=2, batch_size=16), "usual", SHAPE, SLICE.chip.usable)
    gathered, again = (
        sum(one.bytes * one.times for one in plan.collectives if one.kind == "all-gather")
        for plan in (planned, in_parts)
    )
    assert again == pytest.approx(2 * gathered, rel=0.01), "each part gathers all weights"


def test_the_report_says_whether_it_fits_and_what_it_assumes(planned):
    lines = said([planned])
    assert any(line.startswith("fits") and line.endswith("yes") for line in lines)
    assert any("rented as v5litepod-8" in line for line in lines)
    assert any(line.startswith("assumed:") and "197 TFLOP/s" in line for line in lines)


def failed(planned, **changes):
    """The same program on a chip that it does not fit."""
    needed = exhausted(EXHAUSTED)
    run = replace(planned.run, settings=replace(planned.run.settings, **changes))
    return replace(planned, run=run, bytes=needed, fits=False, collectives=[])


def test_a_program_that_does_not_fit_says_what_takes_the_memory_and_what_to_change(planned):
    large = failed(planned)
    assert large.bytes == int(20.5 * 2**30)
    lines = said([large])
    assert any(line.startswith("fits") and line.endswith("no") for line in lines)
    assert "20.50 GiB of 15.75 (activations 20.5 GiB" in lines[-1]
    assert "config.remat=full" in lines[-1]


def test_what_fits_and_what_does_not_stand_side_by_side(planned):
    lines = said([planned, replace(failed(planned), name="longest")])
    assert any(line.split() == ["fits", "yes", "no"] for line in lines)
    assert any(line.split()[:-1] == ["all", "at", "once"] for line in lines)
    assert lines[-1].startswith("the longest rows do not fit")


def test_advice_leaves_out_what_is_done_already(planned):
    done = failed(planned, remat="full", attention="splash")
    assert not {"remat", "splash", "micro_batches"} & set(said([done])[-1].replace("=", ".").split("."))


def test_other_failures_of_the_compiler_are_not_taken_for_lack_of_memory():
    assert exhausted("INTERNAL: something else (20.50G)") == 0


def test_rows_of_images_alone_are_refused():
    with pytest.raises(UserError, match=r"data\.max_length"):
        plan_pod.shapes_of(run_of(**{"data.max_length": 16}), text=512, images=1)


def said(planned):
    return plan_pod.report(planned, SLICE).splitlines()


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    return subprocess.run(
        [sys.executable, "-m", "victor_jax", "plan-pod", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config"),
        ([f"--config=configs/finetune.py:{RECIPE}"], "--topology"),
        ([f"--config=configs/finetune.py:{RECIPE}", "--topology=v5e:8x8x8"], "v5e has 2 axes"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_mistake_is_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command adds
    assert cli.main(["plan-pod", *arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
    done = command(f"--config=configs/finetune.py:{RECIPE}", "--topology=v5e:2x4")
    assert done.returncode == 2
    assert "[tpu]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
@pytest.mark.parametrize("slice_", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_the_step_compiles_for_every_kind_of_tpu(slice_):
    done = command(f"--config=configs/finetune.py:{RECIPE}", f"--topology={slice_}")
    assert done.returncode == 0, done.stderr
    assert any(line.split() == ["fits", "yes", "yes"] for line in done.stdout.splitlines())
    assert "all-gather" in done.stdout
