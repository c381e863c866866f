"""victor-jax plan-pod --config=FILE[:args] --topology=v5e:8x8 [--config.some.key=value …]

Compiles the training step of a recipe for a slice of a TPU pod, on a machine without any TPU: does it fit, what takes
the memory, which collectives run, how long does a step take at best. Nothing is rented, no data or weights are read.
"""

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from victor_jax.analysis import topology as slices
from victor_jax.errors import UserError

if TYPE_CHECKING:  # jax may be imported only when the environment is ready for libtpu
    from victor_jax.analysis.collectives import Collective
    from victor_jax.analysis.flops import StepCost
    from victor_jax.analysis.memory import Memory
    from victor_jax.data.shapes import Shape
    from victor_jax.training.lowering import LoweredStep
    from victor_jax.training.settings import Settings

GIB = 2**30
QUICK = -1.0  # of jax_exec_time_optimization_effort: compiles several times faster, temporaries within a tenth
TEXT = 512  # of a usual row: above the mean of LLaVA's mix665k


@dataclass(frozen=True)
class Planned:
    """What is known of one program."""

    name: str
    step: "LoweredStep"
    memory: "Memory"
    collectives: "list[Collective]"  # none where it does not fit
    costs: "list[StepCost]"  # of each part of the batch
    seconds: float  # to compile


@dataclass(frozen=True)
class Times:
    """Seconds of one step at the chip's peak rates."""

    arithmetic: float
    memory: float
    links: float

    @property
    def overlapped(self) -> float:
        return max(self.arithmetic, self.memory, self.links)

    @property
    def in_turn(self) -> float:
        return self.arithmetic + self.memory + self.links


def shapes_of(settings: "Settings", text: int, images: int) -> "dict[str, Shape]":
    """A usual row, and the longest that the settings allow."""
    from victor_jax.compression.spec import parse
    from victor_jax.data.shapes import Shape
    from victor_jax.training.setup import size

    config = size(settings)
    visual = images * parse(settings.compression, config).tokens_per_image(config)
    longest = settings.data.max_length - visual
    if longest < 1:
        raise UserError(
            f"config.data.max_length={settings.data.max_length} leaves no text beside {visual} visual tokens"
        )
    return {"usual": Shape(min(text, longest), images, visual), "longest": Shape(longest, images, visual)}


def plan(step: "LoweredStep", name: str) -> Planned:
    """Compiles one program and reads what came of it."""
    start = time.perf_counter()
    memory, collectives = compiled(step)
    return Planned(name, step, memory, collectives, costs(step), time.perf_counter() - start)


def compiled(step: "LoweredStep") -> "tuple[Memory, list[Collective]]":
    from victor_jax.analysis.collectives import collectives
    from victor_jax.analysis.memory import of_compiled, of_failure

    try:
        program = step.lowered.compile()
    except Exception as error:  # its class differs between versions of jax
        memory = of_failure(str(error), arguments(step))
        if memory is None:
            raise
        return memory, []
    return of_compiled(program, arguments(step)), collectives(program.as_text() or "")


def arguments(step: "LoweredStep") -> dict[str, Any]:
    """What lies in memory from the beginning of a step to its end, by kind."""
    from victor_jax.training.setup import abstract_part

    run = step.run
    return {
        "trained parameters": run.state.train,
        "optimizer": run.state.optimizer,
        "frozen parameters": run.frozen,
        "batch": [abstract_part(run, part) for part in step.parts],
    }


def costs(step: "LoweredStep") -> "list[StepCost]":
    from victor_jax.analysis.flops import Training, Work, training_step

    settings, module = step.run.settings, step.run.module
    rows = settings.batch_size // settings.micro_batches
    training = Training(settings.trainable, module.remat, settings.lora.rank)
    works = [
        Work.of_loss(rows, lengths, rows * part.images, settings.loss_chunk)
        for part, lengths in zip(step.parts, step.lengths, strict=True)
    ]
    return [training_step(module, work, training) for work in works]


def times(planned: Planned, topology: slices.Topology) -> Times:
    chip, chips = topology.chip, topology.chips
    delivered = sum(one.bytes * one.times for one in planned.collectives)
    return Times(
        sum(one.parts.total.flops for one in planned.costs) / chips / chip.flops,
        (2 * delivered + planned.costs[0].parts.update.bytes / chips) / chip.bandwidth,
        sum(one.wire_bytes for one in planned.collectives) / chip.links,
    )


# --- in words -------------------------------------------------------------------------------------------------------


def report(planned: Sequence[Planned], topology: slices.Topology, say: Callable[[str], None] = print) -> None:
    _say_run(planned, topology, say)
    _say_memory(planned, topology, say)
    if fitting := [one for one in planned if one.memory.fits]:
        _say_collectives(fitting, say)
    _say_times(planned, topology, say)
    for one in planned:
        if not one.memory.fits:
            say(f"\nthe {one.name} rows do not fit; {advice(one, topology)}")


def _say_run(planned: Sequence[Planned], topology: slices.Topology, say: Callable[[str], None]) -> None:
    run = planned[0].step.run
    settings, mesh = run.settings, ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    say(
        f"{settings.size}, {run.module.method.spec}, training {' '.join(settings.trainable)}"
        f"{f' and adapters of rank {settings.lora.rank}' if settings.lora.rank else ''}; "
        f"{settings.dtype} on {settings.param_dtype} parameters, remat {settings.remat}, {settings.attention} attention"
    )
    say(
        f"{topology.name}: {topology.chips} chips, rented as {topology.accelerator_type}; mesh {mesh}; "
        f"{settings.batch_size} rows per step{_in_parts(settings)}"
    )
    for one in planned:
        part, lengths = one.step.parts[0], one.step.lengths[0]
        stages = ", ".join(
            f"{layers} {'layer' if layers == 1 else 'layers'} on {length}"
            for layers, length in zip(run.module.method.plan.stages, lengths, strict=True)
        )
        images = "1 image" if part.images == 1 else f"{part.images} images"
        say(f"  {one.name} rows: {part.text} text positions, {images}: {stages} (compiled in {one.seconds:.0f} s)")


def _in_parts(settings: "Settings") -> str:
    return f" in {settings.micro_batches} parts" if settings.micro_batches > 1 else ""


def _say_memory(planned: Sequence[Planned], topology: slices.Topology, say: Callable[[str], None]) -> None:
    def gib(size: float) -> str:
        return f"{size / GIB:.2f}"

    memories = [one.memory for one in planned]
    usable = [memory.available or topology.chip.usable for memory in memories]
    rows = {kind: [gib(memory.arguments[kind]) for memory in memories] for kind in memories[0].arguments}
    rows["activations, gradients"] = [gib(memory.temporaries) for memory in memories]
    rows["in all"] = [gib(memory.total) for memory in memories]
    rows["usable"] = [gib(size) for size in usable]
    rows["fits"] = ["yes" if memory.fits else "no" for memory in memories]
    _say_table("GiB on each chip", [one.name for one in planned], rows, say)


def _say_collectives(planned: Sequence[Planned], say: Callable[[str], None]) -> None:
    from victor_jax.analysis.collectives import totals

    sums = [totals(one.collectives) for one in planned]
    rows = {}
    for kind in {kind: None for of_one in sums for kind in of_one}:
        found = [of_one.get(kind, (0, 0, 0.0)) for of_one in sums]
        rows[kind] = [f"{size / 1e9:.2f} in {runs}" for runs, size, _ in found]
    rows["sent by a chip"] = [f"{sum(wire for _, _, wire in of_one.values()) / 1e9:.2f}" for of_one in sums]
    _say_table("collectives of one step, GB in runs", [one.name for one in planned], rows, say)
    if not all(collective.known for one in planned for collective in one.collectives):
        say("  some stand in loops whose length the program does not tell: those count once")


def _say_times(planned: Sequence[Planned], topology: slices.Topology, say: Callable[[str], None]) -> None:
    fitting = [one for one in planned if one.memory.fits]
    flops = {one.name: sum(cost.parts.total.flops for cost in one.costs) for one in planned}
    again = {one.name: sum(cost.recomputed for cost in one.costs) for one in planned}
    rows = {
        "PFLOP of a step": [f"{flops[one.name] / 1e15:.2f}" for one in planned],
        "  of them computed again": [f"{again[one.name] / 1e15:.2f}" for one in planned],
    }
    _say_table("work", [one.name for one in planned], rows, say)
    if not fitting:
        return
    known = {one.name: times(one, topology) for one in fitting}
    columns = [known[one.name] for one in fitting]
    rows = {
        "arithmetic": [f"{one.arithmetic:.3f}" for one in columns],
        "memory": [f"{one.memory:.3f}" for one in columns],
        "links": [f"{one.links:.3f}" for one in columns],
        "all at once": [f"{one.overlapped:.3f}" for one in columns],
        "one after the other": [f"{one.in_turn:.3f}" for one in columns],
    }
    _say_table("seconds of a step at the chip's peaks", [one.name for one in fitting], rows, say)
    chip = topology.chip
    assumed = (
        f"assumed: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:.0f} GB/s of HBM and "
        f"{chip.links / 1e9:.0f} GB/s out of a chip over all its links, the datasheet's peaks; causal attention "
        "counted in full; HBM carries what collectives deliver (written, then read) and the optimizer's update, "
        "nothing else; data is always there. No step is faster than 'all at once'; none reaches the peaks."
    )
    say("\n".join(textwrap.wrap(assumed, 100)))


def _say_table(title: str, columns: Sequence[str], rows: dict[str, list[str]], say: Callable[[str], None]) -> None:
    left = max(len(name) for name in (title, *rows)) + 2
    widths = [max(len(name), *(len(row[i]) for row in rows.values())) + 3 for i, name in enumerate(columns)]
    say("")
    say(title.ljust(left) + "".join(name.rjust(width) for name, width in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        say(name.ljust(left) + "".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def advice(planned: Planned, topology: slices.Topology) -> str:
    """What takes the memory, and what to change, the cheapest first."""
    run, memory = planned.step.run, planned.memory
    settings, mesh = run.settings, run.mesh.shape
    kinds = memory.arguments | {"activations and gradients": memory.temporaries}
    largest = max(kinds, key=lambda kind: kinds[kind])
    rows = settings.batch_size // settings.micro_batches // (mesh["data"] * mesh["fsdp"])
    choices = []
    if settings.remat != "full":
        choices.append("config.remat=full")
    if rows > 1:
        choices.append(f"config.micro_batches={2 * settings.micro_batches}")
    if mesh["data"] > 1:
        choices.append(f"config.mesh.data=1 (parameters over {mesh['data']} times as many chips)")
    if settings.attention == "xla":
        choices.append("config.attention=splash (no scores in memory)")
    if planned.name == "longest":
        choices.append("a smaller config.data.max_length")
    if settings.param_dtype == "float32":
        choices.append("config.param_dtype=bfloat16")
    choices.append("more chips")
    available = memory.available or topology.chip.usable
    return (
        f"{memory.total / GIB:.2f} GiB of {available / GIB:.2f}, most of it {largest} "
        f"({kinds[largest] / GIB:.2f}): try {', '.join(choices)}"
    )


# --- command line ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    from absl import flags

    from victor_jax.training import command

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("topology", None, "a slice: v5e:8x8, v5p:4x4x4, …", flag_values=values)
        flags.DEFINE_integer("text", TEXT, "text positions of a usual row", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("images", 1, "images of each row", lower_bound=0, flag_values=values)
        flags.DEFINE_bool("thorough", False, "compile as the pod will: minutes for little", flag_values=values)

    given = command.parse("victor-jax plan-pod", define, arguments)
    if not given.topology:
        raise UserError(f"--topology is missing: {', '.join(slices.CHIPS)}, and a shape: v5e:8x8")
    topology = slices.parse(given.topology)
    slices.prepare_environment(topology)
    chips = slices.devices(topology)

    import jax

    from victor_jax.training.lowering import lower_step
    from victor_jax.training.settings import read
    from victor_jax.training.setup import mesh_of

    if not given.thorough:
        jax.config.update("jax_exec_time_optimization_effort", QUICK)
    settings = read(given.config.to_dict())
    shapes = shapes_of(settings, given.text, given.images)
    mesh = mesh_of(settings, chips)
    steps = [lower_step(settings, mesh, (shape,) * settings.micro_batches) for shape in shapes.values()]
    print(f"compiling {len(steps)} programs for {topology.name} …", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(len(steps)) as pool:  # the compiler keeps to one core each
        planned = list(pool.map(plan, steps, shapes))
    report(planned, topology)
    return 0 if all(one.memory.fits for one in planned) else 1
