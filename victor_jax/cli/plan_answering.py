"""The part of `victor-jax plan-pod` behind --answering: prefill and decode instead of a training step."""

import argparse
from collections.abc import Sequence

import jax.numpy as jnp

from victor_jax.analysis import stand_ins, topology
from victor_jax.analysis.answering import Answering, Asked, Cost, answering
from victor_jax.analysis.collectives import totals
from victor_jax.analysis.compiled import Compiled
from victor_jax.analysis.topology import GIB, Chip, Topology
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.inference.devices import mesh_for
from victor_jax.inference.platform import module_for
from victor_jax.inference.vlm import DTYPES
from victor_jax.models.sizes import SIZES
from victor_jax.sharding.mesh import make_mesh

SHOWN = 5  # copies that are named


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="victor-jax plan-pod", allow_abbrev=False)
    parser.add_argument("--answering", action="store_true")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--compression", default="full")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--attention", default="auto")
    for name, default in (("rows", 16), ("text", 64), ("images", 1), ("room", 128), ("data", 0), ("tensor", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    if min(given.rows, given.text, given.room) < 1 or min(given.images, given.data, given.tensor) < 0:
        raise UserError("--rows, --text and --room must be at least 1, --images, --data and --tensor at least 0")
    asked, chips = Asked(given.rows, given.text, given.images, given.room), topology.parse(given.topology)
    found = compiled_for(
        chips, given.size, given.compression, asked, given.dtype, given.attention, (given.data, given.tensor)
    )
    print(report(found, chips))
    return 0 if fits(found, chips.chip) else 1


def compiled_for(
    chips: Topology,
    size: str,
    compression: str,
    asked: Asked,
    dtype: str = "bfloat16",
    attention: str = "auto",
    mesh: tuple[int, int] = (0, 0),  # data and tensor, 0: as `load` would
) -> Answering:
    devices, config = stand_ins.devices(chips), SIZES[size]
    module = module_for(config, parse(compression, config), dtype, attention, devices[0].platform)
    data, tensor = mesh
    if data or tensor:
        place = make_mesh(data or len(devices) // tensor, 1, tensor or len(devices) // data, devices)
    else:
        place = mesh_for(module, devices, int(chips.chip.usable)) or devices[0]
    return answering(module, place, asked)


def fits(found: Answering, chip: Chip) -> bool:
    return found.decode is not None and found.prefill.fits(chip.usable) and found.decode.fits(chip.usable)


# --- in words -------------------------------------------------------------------------------------------------------


def report(found: Answering, chips: Topology) -> str:
    module, asked, chip = found.module, found.asked, chips.chip
    mesh = "; mesh " + ", ".join(f"{axis} {size}" for axis, size in found.mesh.shape.items()) if found.mesh else ""
    images = f"{asked.images} image{'s' * (asked.images != 1)}"
    stages = zip(module.method.plan.stages, found.lengths, strict=True)
    on = ", ".join(f"{layers} layer{'s' * (layers != 1)} on {length}" for layers, length in stages)
    lines = [
        f"{module.method.spec} answering in {jnp.dtype(module.dtype).name}, {module.implementation} attention",
        chips.described + mesh,
        f"  {asked.rows} rows of {asked.text} text positions and {images}: {on}; answers of up to {asked.room} tokens",
    ]
    memory = [_memory(name, one, chip) for name, one in (("prefill", found.prefill), ("decode", found.decode)) if one]
    lines += side_by_side(memory)
    if found.decode is None or not found.decode.text:
        return "\n".join(lines)
    costs = {"prefill": found.of_prefill, "each token": found.of_token}
    lines += side_by_side([_work(name, cost) for name, cost in costs.items()])
    lines += side_by_side([_bound(name, cost, chip) for name, cost in costs.items()])
    lines += ["", f"images per second at the peaks: {_rates(found, chips)}"]
    for name, cost in costs.items():
        lines += [
            f"copied in {name}: {copy.bytes / 1e9:.2f} GB {copy.type.split('{')[0]} from {copy.argument or copy.source}"
            for copy in cost.copies[:SHOWN]
        ]
    return "\n".join([*lines, _assumed(chip)])


def side_by_side(columns: Sequence[dict[str, str]]) -> list[str]:
    """Columns of row -> cell. The title of each table is a row, too, that names the program."""
    lines = []
    for row in dict.fromkeys(row for column in columns for row in column):
        cells = "".join(column.get(row, "").rjust(17) for column in columns)
        lines.append(row.ljust(40 + row.startswith("\n")) + cells)
    return lines


def _memory(name: str, one: Compiled, chip: Chip) -> dict[str, str]:
    sizes = {"temporaries": one.temporaries, "reused for results": one.reused, "at the peak": one.peak}
    cells = {kind: f"{size / GIB:.2f}" for kind, size in (sizes | {"usable": chip.usable}).items()}
    compiled_in = {"compiled in": f"{one.seconds:.0f} s"}
    return {"\nGiB on each device": name} | cells | {"fits": "yes" if one.fits(chip.usable) else "no"} | compiled_in


def _work(name: str, cost: Cost) -> dict[str, str]:
    cells = {"\non each device": name, "TFLOP": f"{cost.flops / 1e12:.3f}"}
    cells |= {"  in closed form": f"{cost.least_flops / 1e12:.3f}", "GB moved": f"{cost.bytes / 1e9:.2f}"}
    cells |= {"  weights and caches once": f"{cost.least_bytes / 1e9:.2f}"}
    cells["  copies, read and written"] = f"{2 * sum(copy.bytes for copy in cost.copies) / 1e9:.2f}"
    for kind, (runs, size, _) in totals(cost.collectives).items():
        cells[f"{kind}, GB in runs"] = f"{size / 1e9:.3f} in {runs}"
    return cells


def _bound(name: str, cost: Cost, chip: Chip) -> dict[str, str]:
    return {"\nms at the peaks": name} | {kind: f"{1000 * time:.2f}" for kind, time in cost.seconds(chip).items()}


def _rates(found: Answering, chips: Topology) -> str:
    lengths = (1, found.asked.room)
    rates = [found.asked.rows / found.seconds(chips.chip, tokens) for tokens in lengths]
    return ", ".join(f"{rate:.1f} for answers of {tokens}" for rate, tokens in zip(rates, lengths, strict=True))


def _assumed(chip: Chip) -> str:
    return f"""assumed: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:.0f} GB/s of HBM and \
{chip.links / 1e9:.0f} GB/s out of a chip over all its links, the data
sheet's peaks; the slowest of the three decides. A bound, not a measurement: the arithmetic of this program,
and operands and results of each instruction in HBM, once. Only caches could be faster; nothing reaches the peaks."""
