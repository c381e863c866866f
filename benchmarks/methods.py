"""python -m benchmarks.methods --preset={cpu,7b} [--specs SPEC …] [--out=FILE]: every method, one table.

Where visual positions go, what that computes, keeps and adds, and the first token and decoding measured against `full`
in one process in turn. Random weights: speed does not ask what was learned. Folders of eval.py (--answers) put accuracy
beside it and draw a figure: then their methods are compared, and --model names a checkpoint of their architecture.
"""

import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks import machine
from benchmarks.inference import lower_answer
from benchmarks.shapes import PRESETS, Params, Preset, batch_of, random_params
from victor_jax.analysis import flops, traced
from victor_jax.compression.plan import Kind, Layers, Method, Plan
from victor_jax.compression.spec import parse
from victor_jax.inference.platform import module_for, weight_format
from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.weights.place import sources

TEXT = 64  # text tokens of a prompt
ROWS = {"cpu": 2, "7b": 16}
# For towers of 32 layers, 24 vision layers and 576 visual tokens. `full` comes first: the others are held against it.
SPECS = (
    "full",
    "victor:registers=8,layer=3",
    "victor:registers=64,layer=3",
    "victor:registers=8,layer=3,route=registers",
    "victor-pooled:registers=8,layer=3",
    "elastic:registers=64,layer=3",
    "vtw:layer=16",
    "fastv:keep=64,layer=3",
    "pyramiddrop",
    "sparsevlm",
    "sparsevlm:keep=300-200-110,recycle=yes,positions=renumber",
    "hidrop",
    "mod",
    "visor:self=0,cross=8",
    "visor:self=2,cross=8",
    "visor:self=8,cross=8",
    "visor:policy",
    "dyvte",
    "windows:tokens=8,layer=3",
    "last:tokens=8,layer=3",
    "random:tokens=8,layer=3",
    "pool:tokens=64",
    "perceiver:tokens=64",
    "qwenvl:tokens=64",
    "mqt:tokens=64",
    "tokenpacker:tokens=64",
    "llavamini",
    "m3:tokens=64",
    "vtccls:tokens=64,first=14",
    "fopru:tokens=64",
    "visionzip:tokens=64,contextual=10",
    "prumerge",
    "prumergeplus:best=13,step=11",
    "divprune:tokens=64",
    "visionzip:tokens=64,contextual=10+victor:registers=8,layer=3",
)


def positions(plan: Plan, method: Method, config: VLMConfig) -> tuple[float, int]:
    """Of one image, visual tokens and registers: the mean over the layers, and those in the last layer."""
    stream, parked = np.zeros((2, 1, len(Kind)), np.int64)
    stream[0, [Kind.VISUAL, Kind.REGISTER]] = method.tokens_per_image(config), method.registers
    stages = []
    for step in plan.steps:
        if isinstance(step, Layers):
            stages.append((step.count, int(stream.sum())))
        else:
            stream, parked = step.after(stream, parked)
    return sum(layers * count for layers, count in stages) / plan.depth, stages[-1][1]


def prepare(
    preset: Preset, spec: str, rows: int, have: Params
) -> tuple[Callable[[], dict[str, Callable[[], Any]]], dict[str, Any]]:
    """Of one method: what compiles its programs, and what is known without running. `have`: see weights."""
    config, room = preset.config, preset.new_tokens[-1]
    platform = jax.devices()[0].platform
    module = module_for(config, parse(spec, config), preset.dtype, preset.attention, platform)
    batch, sizes = batch_of(module, rows, TEXT, supervised=False)
    method, lengths = module.method, module.method.plan.stage_lengths(sizes)
    mean, final = positions(method.plan, method, config)
    known = {
        "name": spec,
        "positions": {"mean": mean, "final": final},
        "flops": prefill_flops(module, rows, TEXT),
        "cache_bytes_per_image": flops.cache_bytes(module, 1, lengths),
        "parameters": sum(
            math.prod(leaf.shape) for path, leaf in parameters(module).items() if path.startswith("compression/")
        ),
    }
    tree, batch = unflatten_dict(weights(module, have), sep="/"), jax.device_put(batch)
    first, rest, answer = lower_answer(module, tree, batch, sizes, room)

    def compiled() -> dict[str, Callable[[], Any]]:
        begin, go_on = first.compile(), rest.compile()
        return {"prefill": partial(begin, tree, batch), "answer": partial(answer, begin, go_on)}

    return compiled, known


def prefill_flops(module: VLMModule, rows: int, text: int) -> int:
    """Of reading so many prompts, each with one image and `text` tokens."""
    batch, sizes = batch_of(module, rows, text, supervised=False)
    return traced.prefill_flops(module, parameters(module), batch, sizes)


def weights(module: VLMModule, have: Params) -> Params:
    """Random parameters by path; `have`, by per-layer name, is added to and shared: on a GPU, where the weights of each
    layer are an array of their own, all methods hold the same ones."""
    names = {path: sources(path, module) for path in parameters(module)}
    known = {
        path: have[of[0]] if len(of) == 1 else jnp.concatenate([have[name] for name in of])
        for path, of in names.items()
        if all(name in have for name in of)
    }
    params = random_params(module, known)
    for path, of in names.items():
        have |= {name: params[path] if len(of) == 1 else params[path][i : i + 1] for i, name in enumerate(of)}
    platform = jax.devices()[0].platform
    return {path: jax.device_put(leaf, weight_format(path, leaf.sharding, platform)) for path, leaf in params.items()}


def measure(preset: Preset, asked: tuple[str, ...], rows: int) -> list[dict[str, Any]]:
    """One record per method; all are measured in turn. A method that chooses a plan for each row has the mean of the
    records of its plans, each as often as the others: random weights choose nothing that would say more."""
    plans = {spec: [end.spec for end in fork.ends] for spec in asked if (fork := parse(spec, preset.config).fork)}
    specs = dict.fromkeys(one for spec in asked for one in plans.get(spec, [spec]))
    records = {record["name"]: record for record in measure_fixed(preset, tuple(specs), rows)}
    for spec, ends in plans.items():
        chosen = module_for(preset.config, parse(spec, preset.config), preset.dtype, "xla", "cpu")
        own = sum(math.prod(leaf.shape) for path, leaf in parameters(chosen).items() if path.startswith("compression/"))
        records[spec] = mean_of([records[end] for end in ends]) | {"name": spec, "parameters": own}
    return [records[spec] for spec in asked]


def mean_of(records: list[Any]) -> Any:
    """Of all numbers in them."""
    first = records[0]
    if isinstance(first, dict):
        return {key: mean_of([record[key] for record in records]) for key in first}
    return first if isinstance(first, str) else sum(records) / len(records)


def measure_fixed(preset: Preset, specs: tuple[str, ...], rows: int) -> list[dict[str, Any]]:
    have: Params = {}
    known, futures = {}, {}
    with ThreadPoolExecutor() as pool:  # compiles one method while the next is traced
        for spec in specs:
            compiles, known[spec] = prepare(preset, spec, rows, have)
            futures[spec] = pool.submit(compiles)
    compiled = {}
    for spec, future in futures.items():
        compiled[spec] = future.result()
        print(f"compiled {len(compiled)} of {len(specs)}: {spec}", file=sys.stderr, flush=True)
    timed = {(spec, part): program for spec, parts in compiled.items() for part, program in parts.items()}
    seconds = machine.alternate(timed, preset.repeats)
    return [
        known[spec] | {"rows": rows, "seconds": {part: seconds[spec, part] for part in parts}}
        for spec, parts in compiled.items()
    ]


def tables(result: machine.Result) -> str:
    """Markdown of a result."""
    full, room, lines = result["records"][0], result["new_tokens"][-1], []
    for record in result["records"]:
        seconds, base = record["seconds"], full["seconds"]
        line = {"": record["name"], "positions, mean": record["positions"]["mean"]}
        line |= {"last layer": record["positions"]["final"], "TFLOP": record["flops"] / record["rows"] / 1e12}
        line |= {"cache MiB": record["cache_bytes_per_image"] / 2**20, "added": record["parameters"]}
        line |= {"first token ms": 1000 * seconds["prefill"], "speed-up": base["prefill"] / seconds["prefill"]}
        line |= {"FLOPs allow": full["flops"] / record["flops"]}
        line["decode ms/token"] = 1000 * (seconds["answer"] - seconds["prefill"]) / (room - 1)
        line |= {"accuracy": record["accuracy"]} if "accuracy" in record else {}
        lines.append(line)
    return machine.table(lines)


def run(name: str, preset: Preset, specs: tuple[str, ...], rows: int, accuracy: dict[str, float]) -> machine.Result:
    records = [
        record | ({"accuracy": accuracy[record["name"]]} if record["name"] in accuracy else {})
        for record in measure(preset, specs, rows)
    ]
    more = machine.measured(name, preset) | {"text": TEXT, "new_tokens": preset.new_tokens}
    return machine.result("methods", records, **more)


def accuracies(folders: list[str]) -> dict[str, float]:
    """Of folders OUT/NAME of eval.py: compression -> score."""
    results = [json.loads((Path(folder) / "result.json").read_text()) for folder in folders]
    return {result["settings"]["compression"]: result["score"] for result in results}


def main(preset: str, specs: list[str], answers: list[str], model: str | None) -> machine.Result:
    chosen, found = PRESETS[preset], accuracies(answers)
    if model:
        from victor_jax.weights.read import open_checkpoint  # needs the readers of checkpoints, which GPUs may lack

        chosen = replace(chosen, config=open_checkpoint(model).config)
    asked = ["full", *(specs or found or SPECS)]
    return run(preset, chosen, tuple(dict.fromkeys(asked)), ROWS[preset], found)


if __name__ == "__main__":
    machine.command(
        __doc__,
        main,
        tables,
        preset={"choices": tuple(ROWS), "default": "cpu"},
        specs={"nargs": "+", "default": [], "metavar": "SPEC", "help": "these methods instead of all"},
        answers={"nargs": "+", "default": [], "help": "OUT/NAME of eval.py, one per method"},
        model={"help": "a checkpoint folder: its architecture instead of the preset's"},
    )
