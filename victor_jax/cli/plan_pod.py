"""victor-jax plan-pod --config=FILE[:args] --topology=v5e:8x8 [--config.some.key=value …]

Compiles the training step of a recipe for a slice of a TPU pod, on a machine without any TPU: does it fit, what takes
the memory, which collectives run, how long does a step take at best. Nothing is rented, no data or weights are read.

  --topology=v5e:8x8   the slice; v4:4x4x4, v5p:4x4x4, v6e:8x8, …
  --text=512           text positions of a usual row
  --images=1           images of each row
  --thorough           compile as the pod will: takes minutes, changes little
"""

import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
from absl import flags

from victor_jax.analysis import topology as slices
from victor_jax.analysis.collectives import Collective, collectives, totals
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.training import command
from victor_jax.training.memory import advice, bytes_of, described, held
from victor_jax.training.settings import read
from victor_jax.training.setup import Run, abstract_part, make_run, mesh_of, part_cost, sizes_of

QUICK = -1.0  # of jax_exec_time_optimization_effort: compiles several times faster, temporaries within a tenth
TEXT = 512  # of a usual row: above the mean of LLaVA's mix665k
# libtpu's words for a program that does not fit; they name temporaries and count everything.
EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED.*\(([\d.]+)([KMGT]?)\) exceeds available HBM", re.S)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Planned:
    """What is known of one program. Bytes are those of one chip."""

    name: str
    run: Run
    shape: Shape  # of every part of the batch
    arguments: dict[str, int]  # bytes by kind: in memory throughout, updated in place
    bytes: int  # at the peak
    fits: bool
    collectives: list[Collective]  # none where it did not fit
    seconds: float  # to compile

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes at the peak; the last kind is what the step makes and drops, gathered weights too."""
        return self.arguments | {"activations": self.bytes - sum(self.arguments.values())}


def shapes_of(run: Run, text: int, images: int) -> dict[str, Shape]:
    """A usual row, and the longest that the settings allow."""
    visual, limit = images * run.module.method.tokens_per_image(run.module.config), run.settings.data.max_length
    if (longest := limit - visual) < 1:
        raise UserError(f"config.data.max_length={limit} leaves no text beside {visual} visual tokens")
    return {"usual": Shape(min(text, longest), images, visual), "longest": Shape(longest, images, visual)}


def plan(run: Run, name: str, shape: Shape) -> Planned:
    """Compiles the step for rows of one shape. Nothing is allocated."""
    part, number, rate = (
        abstract_part(run, shape),
        jax.ShapeDtypeStruct((), "int32"),
        jax.ShapeDtypeStruct((), "float32"),
    )
    programs: Any = run
    with jax.set_mesh(run.mesh):
        accumulate = programs.accumulate.lower(
            run.train, run.frozen, run.sums, part, number, number, sizes=sizes_of(run, shape)
        )
        update = programs.update.lower(run.state, run.sums, rate)
    arguments = held(run) | {"batch": bytes_of(part)}
    # Bytes that are in memory beside the arguments of each program; how often it runs in a step.
    beside = bytes_of(run.state.optimizer), bytes_of((run.frozen, part))
    start, peak, found = time.perf_counter(), sum(arguments.values()), list[Collective]()
    for lowered, more, times in zip((accumulate, update), beside, (run.parts, 1), strict=True):
        try:
            program = lowered.compile()
        except Exception as error:  # its class differs between versions of jax
            if not (needed := exhausted(str(error))):
                raise
            peak = max(peak, needed + more)
            return Planned(name, run, shape, arguments, peak, False, [], time.perf_counter() - start)
        # Below arguments + temporaries: donated arguments are reused for outputs.
        peak = max(peak, program.memory_analysis().peak_memory_in_bytes + more)
        found += [replace(one, times=times * one.times) for one in collectives(program.as_text() or "")]
    return Planned(name, run, shape, arguments, peak, True, found, time.perf_counter() - start)


def exhausted(message: str) -> int:
    """Bytes that a program needs, of a compiler's message; 0 where it is about something else."""
    found = EXHAUSTED.search(message)
    return int(float(found[1]) * UNITS[found[2]]) if found else 0


def times(planned: Planned, topology: slices.Topology) -> dict[str, float]:
    """Seconds of one step at the chip's peak rates, by resource."""
    chip, chips, run = topology.chip, topology.chips, planned.run
    # Gradients, parameters and both moments are read and written.
    update = 2 * (2 * planned.arguments["trained parameters"] + planned.arguments["optimizer"])
    delivered = sum(one.bytes * one.times for one in planned.collectives)
    return {
        "arithmetic": run.parts * part_cost(run, planned.shape).flops / chips / chip.flops,
        "memory": (2 * delivered + update) / chip.bandwidth,
        "links": sum(one.wire_bytes for one in planned.collectives) / chip.links,
    }


# --- in words -------------------------------------------------------------------------------------------------------


def report(planned: Sequence[Planned], topology: slices.Topology) -> str:
    columns = [_column(one, topology) for one in planned]
    lines = _heading(planned, topology)
    for row in dict.fromkeys(row for column in columns for row in column):
        cells = "".join(column.get(row, "").rjust(17) for column in columns)
        lines.append(row.ljust(40 + row.startswith("\n")) + cells)
    if any(one.fits for one in planned):
        lines.append(_assumed(topology.chip))
    lines += [
        f"\nthe {one.name} rows do not fit: {one.bytes / slices.GIB:.2f} GiB of "
        f"{topology.chip.usable / slices.GIB:.2f} ({described(one.kinds)}); {advice(one.run, of_step=True)}"
        for one in planned
        if not one.fits
    ]
    return "\n".join(lines)


def _heading(planned: Sequence[Planned], topology: slices.Topology) -> list[str]:
    run = planned[0].run
    settings, mesh = run.settings, ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    adapters = f" and adapters of rank {settings.lora.rank}" if settings.lora.rank else ""
    lines = [
        f"{settings.size}, {run.module.method.spec}, training {' '.join(settings.trainable)}{adapters}; "
        f"{settings.dtype} on {settings.param_dtype} parameters, remat {settings.remat}, "
        f"{settings.attention} attention",
        f"{topology.name}: {topology.chips} chips, rented as {topology.accelerator_type}; mesh {mesh}; "
        f"{settings.batch_size} rows per step{f' in {n} parts' if (n := run.parts) > 1 else ''}",
    ]
    for one in planned:
        part, steps = one.shape, run.module.method.plan
        stages = zip(steps.stages, steps.stage_lengths(sizes_of(run, part)), strict=True)
        on = ", ".join(f"{layers} layer{'s' * (layers != 1)} on {length}" for layers, length in stages)
        images = f"{part.images} image{'s' * (part.images != 1)}"
        lines.append(f"  {one.name} rows: {part.text} text positions, {images}: {on} (compiled in {one.seconds:.0f} s)")
    return lines


def _column(one: Planned, topology: slices.Topology) -> dict[str, str]:
    """Row -> cell. The title of each table is a row, too, that names the program."""
    sizes = one.kinds | {"in all": one.bytes, "usable": topology.chip.usable}
    cells = {"\nGiB on each chip": one.name} | {kind: f"{size / slices.GIB:.2f}" for kind, size in sizes.items()}
    cells |= {"fits": "yes" if one.fits else "no", "\nwork": one.name}
    cost = part_cost(one.run, one.shape)
    cells["PFLOP of a step"] = f"{one.run.parts * cost.flops / 1e15:.2f}"
    cells["  of them computed again"] = f"{one.run.parts * cost.recomputed / 1e15:.2f}"
    if not one.fits:
        return cells
    sums, seconds = totals(one.collectives), times(one, topology)
    cells["\ncollectives of one step, GB in runs"] = one.name
    cells |= {kind: f"{size / 1e9:.2f} in {runs}" for kind, (runs, size, _) in sums.items()}
    cells["sent by a chip"] = f"{sum(wire for _, _, wire in sums.values()) / 1e9:.2f}"
    if not all(each.known for each in one.collectives):
        cells["loops of unknown length"] = "count once"
    cells["\nseconds of a step at the chip's peaks"] = one.name
    bounds = {"all at once": max(seconds.values()), "one after the other": sum(seconds.values())}
    return cells | {name: f"{number:.3f}" for name, number in (seconds | bounds).items()}


def _assumed(chip: slices.Chip) -> str:
    return f"""assumed: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:.0f} GB/s of HBM and \
{chip.links / 1e9:.0f} GB/s out of a chip over all its links, the data
sheet's peaks; causal attention counted in full; HBM carries what collectives deliver (written, then
read) and the optimizer's update, nothing else; data is always there. No step is faster than 'all at
once'; none reaches the peaks."""


# --- command line ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("topology", None, "a slice: v5e:8x8, v5p:4x4x4, …", flag_values=values)
        flags.DEFINE_integer("text", TEXT, "text positions of a usual row", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("images", 1, "images of each row", lower_bound=0, flag_values=values)
        flags.DEFINE_bool("thorough", False, "compile as the pod will", flag_values=values)

    given = command.parse("victor-jax plan-pod", define, arguments)
    if not given.topology:
        raise UserError(f"--topology is missing: {', '.join(slices.CHIPS)}, and a shape: v5e:8x8")
    topology, settings = slices.parse(given.topology), read(given.config.to_dict())
    mesh = mesh_of(settings, slices.devices(topology))
    if not given.thorough:
        jax.config.update("jax_exec_time_optimization_effort", QUICK)
    run = make_run(settings, SIZES[settings.size], mesh)
    shapes = shapes_of(run, given.text, given.images)
    print(f"compiling {len(shapes)} programs for {topology.name} …", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(len(shapes)) as pool:  # the compiler keeps to one core each
        planned = list(pool.map(lambda name: plan(run, name, shapes[name]), shapes))
    print(report(planned, topology))
    return 0 if all(one.fits for one in planned) else 1
