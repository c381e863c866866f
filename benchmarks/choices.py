"""python -m benchmarks.choices [--preset=cpu] [--specs SPEC …] [--rows=16] [--out=FILE]: what groups cost.

Methods that choose a plan for each row run the layers below the choice for all rows, then each group alone. Here a
batch is cut into groups of equal size, and the time to its first tokens is held against the sum of what each group
takes alone, as a batch of its own under its plan. Random weights; what chooses is solved for so that rows part evenly.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks import machine
from benchmarks.shapes import PRESETS, Params, Preset, batch_of, random_params
from victor_jax.analysis import policy
from victor_jax.compression.plan import Counts, Kind
from victor_jax.compression.spec import parse
from victor_jax.inference import programs
from victor_jax.inference.forks import Group, groups
from victor_jax.inference.platform import module_for
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.weights.names import OWN

TEXT = 64  # text tokens of a prompt
SPECS = ("visor:policy", "dyvte")


def evenly(module: VLMModule, params: Params, batch: Batch, sizes: Any) -> Params:
    """With the last layer of all that chooses solved for: each branch of a fork gets as many of the rows that come
    there as each plan behind it should have."""
    method = module.method
    assert method.fork is not None
    seen = policy.features(unflatten_dict(params, sep="/"), batch, module=module, sizes=sizes)
    plans = np.arange(len(seen)) % len(method.fork.ends)  # which plan each row is to end with
    wanted = policy.right_branches(method, plans[:, None] == np.arange(len(method.fork.ends)))
    solved = {}
    for number, fork in enumerate(method.fork.forks):
        chooser = next(path for path in params if path.endswith("/up") and _belongs(path, fork.layers))
        hidden = jax.nn.gelu(seen[:, number] @ params[chooser].astype(jnp.float32), approximate=False)
        scores = np.eye(len(fork.branches), dtype=np.float32)[wanted[:, number]]
        down = chooser.replace("/up", "/down")
        solved[down] = jnp.asarray(np.linalg.lstsq(np.asarray(hidden), scores, rcond=None)[0], params[down].dtype)
    return params | solved


def _belongs(path: str, layers: int) -> bool:
    return path in (f"{OWN}steps/router/up", f"{OWN}steps/gates_{layers}/up")


def measure(preset: Preset, spec: str, rows: int) -> dict[str, Any]:
    config, room = preset.config, preset.new_tokens[0]
    module = module_for(config, parse(spec, config), preset.dtype, preset.attention, jax.devices()[0].platform)
    batch, sizes = batch_of(module, rows, TEXT, supervised=False)
    counts = np.zeros((1, len(Kind)), int)
    counts[0, [Kind.TEXT, Kind.VISUAL]] = TEXT, config.features_per_image
    params = evenly(module, random_params(module, {}), batch, sizes)
    tree = unflatten_dict(params, sep="/")
    found = grouped(tree, batch, counts, module, room)
    alone = {}
    for group in found:
        mine = jax.tree.map(lambda array, group=group: array[group.rows], batch)
        of_plan = group.module.method.plan.sizes(counts)
        alone[group.compression] = partial(programs.prefill, tree, mine, module=group.module, sizes=of_plan, room=room)
    together = {spec: lambda: [group.found for group in grouped(tree, batch, counts, module, room)]}
    seconds = machine.alternate(together | alone, preset.repeats)
    return {
        "name": spec,
        "rows": {group.compression: len(group.rows) for group in found},
        "seconds": {name: seconds[name] for name in alone},
        "together": seconds[spec],
    }


def grouped(tree: Any, batch: Batch, counts: Counts, module: VLMModule, room: int) -> list[Group]:
    return list(groups(tree, batch, counts, module, None, room))


def tables(result: machine.Result) -> str:
    lines: list[dict[str, Any]] = []
    for record in result["records"]:
        for name, seconds in record["seconds"].items():
            lines.append({"": f"{record['name']}: {name}", "rows": record["rows"][name], "ms": 1000 * seconds})
        total = sum(record["seconds"].values())
        lines.append({"": f"{record['name']}: their sum", "rows": sum(record["rows"].values()), "ms": 1000 * total})
        lines.append(
            {"": f"**{record['name']}: all in one batch**", "rows": sum(record["rows"].values()),
             "ms": 1000 * record["together"], "of the sum": record["together"] / total}
        )  # fmt: skip
    lines[0]["of the sum"] = ""  # the columns are those of the first line
    return machine.table(lines)


def main(preset: str, specs: list[str], rows: int) -> machine.Result:
    chosen = PRESETS[preset]
    records = [measure(chosen, spec, rows) for spec in specs or SPECS]
    return machine.result("choices", records, **machine.measured(preset, chosen), text=TEXT)


if __name__ == "__main__":
    machine.command(
        __doc__,
        main,
        tables,
        preset={"choices": tuple(PRESETS), "default": "cpu"},
        specs={"nargs": "+", "default": [], "metavar": "SPEC", "help": "these instead of all"},
        rows={"type": int, "default": 16, "help": "of the batch (default: 16)"},
    )
