"""victor-jax plan-pod --config=FILE[:args] --topology=v5e:8x8 [--config.some.key=value …]
victor-jax plan-pod --answering --topology=h200 [--compression=victor:registers=8,layer=3 …]

Compiles the training step of a recipe, or what answers questions, for a slice of a TPU pod or for GPUs, on a machine
without any: does it fit, what takes the memory, what is copied, which collectives run, how long does it take at best.
Nothing is rented, no data or weights are read. It needs the compiler, `.[tpu]` or `.[cuda]`, and no device.

  --topology=v5e:8x8   a slice, v4:4x4x4, v5p:4x4x4, v6e:8x8, …; or GPUs of one node, h200, h200x8, h100x8, a100, b200
  --text=512           text positions of a usual row; 64 with --answering
  --images=1           images of each row

Of a recipe:
  --thorough           compile as the pod will: takes minutes, changes little

With --answering, no recipe is read, and
  --compression=full   the method
  --size=7b --dtype=bfloat16 --attention=auto
  --rows=16            rows of a batch
  --room=128           new tokens of an answer
  --data=N --tensor=N  the mesh: copies of the weights, parts of each; as `load` chooses them where none is given
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
from absl import flags

from victor_jax.analysis import stand_ins
from victor_jax.analysis.collectives import Collective, collectives, totals
from victor_jax.analysis.compiled import compiled
from victor_jax.analysis.topology import EXAMPLES, GIB, Chip, Topology, parse
from victor_jax.cli import plan_answering
from victor_jax.cli.plan_answering import side_by_side
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.training import command
from victor_jax.training.memory import advice, bytes_of, described, held
from victor_jax.training.settings import read
from victor_jax.training.setup import Run, abstract_part, make_run, mesh_of, part_cost, sizes_of

QUICK = -1.0  # of jax_exec_time_optimization_effort: compiles several times faster, temporaries within a tenth
TEXT = 512  # of a usual row: above the mean of LLaVA's mix665k


@dataclass(frozen=True)
class Planned:
    """What is known of a step. Bytes are those of one chip."""

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


def plan(run: Run, name: str, shape: Shape, usable: float) -> Planned:
    """Compiles the step for parts of one shape. Nothing is allocated. `usable`: bytes of a chip."""
    arguments = held(run) | {"batch": bytes_of(abstract_part(run, shape))}
    peak, seconds, found, fits = sum(arguments.values()), 0.0, list[Collective](), True
    for lowered, times, beside in programs(run, shape):
        one = compiled(lowered)
        peak, seconds = max(peak, one.peak + beside), seconds + one.seconds
        fits = fits and bool(one.text) and peak <= usable
        found += [replace(each, times=times * each.times) for each in collectives(one.program)]
    return Planned(name, run, shape, arguments, peak, fits, found, seconds)


def programs(run: Run, shape: Shape) -> Iterator[tuple[jax.stages.Lowered, int, int]]:
    """Each with how often it runs in a step, and how many bytes are in memory that are no arguments of it."""
    part, jitted = abstract_part(run, shape), cast(Any, run)  # whose annotations are those of functions
    number, rate = jax.ShapeDtypeStruct((), "int32"), jax.ShapeDtypeStruct((), "float32")
    with jax.set_mesh(run.mesh):
        accumulate = jitted.accumulate.lower(
            run.train, run.frozen, run.sums, part, number, number, sizes=sizes_of(run, shape)
        )
        update = jitted.update.lower(run.state, run.sums, rate)
    yield accumulate, run.parts, bytes_of(run.state.optimizer)
    yield update, 1, bytes_of((run.frozen, part))


def times(planned: Planned, topology: Topology) -> dict[str, float]:
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


def report(planned: Sequence[Planned], topology: Topology) -> str:
    columns = [_column(one, topology) for one in planned]
    lines = _heading(planned, topology) + side_by_side(columns)
    if any(one.fits for one in planned):
        lines.append(_assumed(topology.chip))
    lines += [
        f"\nthe {one.name} rows do not fit: {one.bytes / GIB:.2f} GiB of "
        f"{topology.chip.usable / GIB:.2f} ({described(one.kinds)}); {advice(one.run, of_step=True)}"
        for one in planned
        if not one.fits
    ]
    return "\n".join(lines)


def _heading(planned: Sequence[Planned], topology: Topology) -> list[str]:
    run = planned[0].run
    settings, mesh = run.settings, ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    adapters = f" and adapters of rank {settings.lora.rank}" if settings.lora.rank else ""
    lines = [
        f"{settings.size}, {run.module.method.spec}, training {' '.join(settings.trainable)}{adapters}; "
        f"{settings.dtype} on {settings.param_dtype} parameters, remat {settings.remat}, "
        f"{run.module.implementation} attention",
        f"{topology.described}; mesh {mesh}; "
        f"{settings.batch_size} rows per step{f' in {n} parts' if (n := run.parts) > 1 else ''}",
    ]
    for one in planned:
        part, steps = one.shape, run.module.method.plan
        stages = zip(steps.stages, steps.stage_lengths(sizes_of(run, part)), strict=True)
        on = ", ".join(f"{layers} layer{'s' * (layers != 1)} on {length}" for layers, length in stages)
        images = f"{part.images} image{'s' * (part.images != 1)}"
        lines.append(f"  {one.name} rows: {part.text} text positions, {images}: {on} (compiled in {one.seconds:.0f} s)")
    return lines


def _column(one: Planned, topology: Topology) -> dict[str, str]:
    """Row -> cell. The title of each table is a row, too, that names the program."""
    sizes = one.kinds | {"in all": one.bytes, "usable": topology.chip.usable}
    cells = {"\nGiB on each chip": one.name} | {kind: f"{size / GIB:.2f}" for kind, size in sizes.items()}
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


def _assumed(chip: Chip) -> str:
    return f"""assumed: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:.0f} GB/s of HBM and \
{chip.links / 1e9:.0f} GB/s out of a chip over all its links, the data
sheet's peaks; causal attention counted in full; HBM carries what collectives deliver (written, then
read) and the optimizer's update, nothing else; data is always there. No step is faster than 'all at
once'; none reaches the peaks."""


# --- command line ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    if "--answering" in arguments:
        return plan_answering.main(arguments)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("topology", None, f"a slice or GPUs: {EXAMPLES}", flag_values=values)
        flags.DEFINE_integer("text", TEXT, "text positions of a usual row", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("images", 1, "images of each row", lower_bound=0, flag_values=values)
        flags.DEFINE_bool("thorough", False, "compile as the pod will", flag_values=values)

    given = command.parse("victor-jax plan-pod", define, arguments)
    if not given.topology:
        raise UserError(f"--topology is missing: {EXAMPLES}")
    topology, settings = parse(given.topology), read(given.config.to_dict())
    mesh = mesh_of(settings, stand_ins.devices(topology))
    if not given.thorough:
        jax.config.update("jax_exec_time_optimization_effort", QUICK)
    run = make_run(settings, SIZES[settings.size], mesh)
    shapes = shapes_of(run, given.text, given.images)
    print(f"compiling {len(shapes)} programs for {topology.name} …", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(len(shapes)) as pool:  # the compiler keeps to one core each
        planned = list(pool.map(lambda name: plan(run, name, shapes[name], topology.chip.usable), shapes))
    print(report(planned, topology))
    return 0 if all(one.fits for one in planned) else 1
