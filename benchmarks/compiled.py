"""python -m benchmarks.compiled --topology={h200,v5e:2x4,…}: answering as compiled, without the device.

A row for each method and batch: what a prefill and a new token compute and move on each device, memory, and the images
per second that follow at the data sheet's peaks. Nothing is measured. Needs the compiler for that platform, as
`victor-jax plan-pod --answering` does, which says more of one row.
"""

import argparse
from typing import Any

from benchmarks.machine import table
from victor_jax.analysis import topology
from victor_jax.analysis.answering import Answering, Asked
from victor_jax.analysis.topology import GIB, Topology
from victor_jax.cli.plan_answering import compiled_for, fits

SPECS = ("full", "victor:registers=8,layer=3")
ROWS = (1, 16, 64)
ANSWERS = (1, 128)  # tokens


def record(found: Answering, chips: Topology) -> dict[str, Any]:
    """A row of the table. FLOPs and bytes are those of one device."""
    mesh = f"data {found.mesh.shape['data']}, tensor {found.mesh.shape['tensor']}" if found.mesh else ""
    row: dict[str, Any] = {"": found.module.method.spec, "rows": found.asked.rows} | ({"mesh": mesh} if mesh else {})
    row["GiB at the peak"] = max(one.peak for one in (found.prefill, found.decode) if one) / GIB
    if not fits(found, chips.chip):
        return row | {"GiB at the peak": f"{row['GiB at the peak']:.1f}, does not fit"}
    for name, cost in (("prefill", found.of_prefill), ("token", found.of_token)):
        row |= {f"TFLOP, {name}": cost.flops / 1e12, f"GB, {name}": cost.bytes / 1e9}
        row[f"ms, {name}"] = 1000 * max(cost.seconds(chips.chip).values())
    for tokens in ANSWERS:
        row[f"images/s, {tokens} token{'s' * (tokens > 1)}"] = found.asked.rows / found.seconds(chips.chip, tokens)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--size", default="7b")
    given = parser.parse_args()
    chips = topology.parse(given.topology)
    cases = [(spec, rows) for spec in SPECS for rows in ROWS]
    print(table([record(compiled_for(chips, given.size, spec, Asked(rows)), chips) for spec, rows in cases]))


if __name__ == "__main__":
    main()
