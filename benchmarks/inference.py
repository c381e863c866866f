"""python -m benchmarks.inference --preset={cpu,7b} [--against=torch] [--out=FILE]: speed of answering.

The paper's protocol: prompts of one image and 64 text tokens, answers of 2 or 128 tokens, cache on; full and Victor;
vision, prefill and decode apart. Everything runs in one process, in turn, and medians are reported, beside what the
closed-form count of FLOPs and bytes says is possible.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from benchmarks import machine
from benchmarks.shapes import PRESETS, Params, Preset, batch_of, counted, prompts, random_params
from victor_jax.analysis import flops
from victor_jax.compression.plan import Size
from victor_jax.compression.spec import parse
from victor_jax.inference.platform import module_for, weight_format
from victor_jax.inference.programs import decode, prefill
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule

TEXT = 64  # text tokens of a prompt
Programs = dict[str, Callable[[], Any]]


def victor(registers: int, layer: int = 3) -> str:
    return f"victor:registers={registers},layer={layer}"


# Preset -> batch -> compressions, each list beginning with full.
CASES: dict[str, dict[int, tuple[str, ...]]] = {
    "cpu": {2: ("full", victor(8), victor(64), victor(256), victor(8, layer=5))},
    "7b": {16: ("full", victor(8), victor(64)), 1: ("full", victor(8))},
}


def prepare(preset: Preset, spec: str, rows: int, have: Params) -> tuple[Params, Programs, dict[str, Any]]:
    """Of one compression: its parameters; what is timed (the vision tower, the first token with all that goes before
    it, whole answers); what is known without running."""
    config, short = preset.config, preset.new_tokens[0]
    platform = jax.devices()[0].platform
    module = module_for(config, parse(spec, config), preset.dtype, preset.attention, platform)
    params = {
        path: jax.device_put(leaf, weight_format(path, leaf.sharding, platform))
        for path, leaf in random_params(module, have).items()
    }
    batch, sizes = batch_of(module, rows, TEXT, supervised=False)
    tree, batch = unflatten_dict(params, sep="/"), jax.device_put(batch)

    see = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels, method=VLMModule.visual_tokens))
    lowered, answers = {"vision": see.lower(tree, batch.pixels)}, dict[int, Callable[[Any, Any], Any]]()
    for room in preset.new_tokens:
        first, rest, answers[room] = lower_answer(module, tree, batch, sizes, room)
        lowered |= {f"prefill {room}": first, f"decode {room}": rest}
    with ThreadPoolExecutor() as pool:
        programs = dict(zip(lowered, pool.map(jax.stages.Lowered.compile, lowered.values()), strict=True))

    def answer(room: int) -> Any:
        return answers[room](programs[f"prefill {room}"], programs[f"decode {room}"])

    timed: Programs = {
        "vision": lambda: programs["vision"](tree, batch.pixels),
        "prefill": lambda: programs[f"prefill {short}"](tree, batch),
        **{f"answer {room}": partial(answer, room) for room in preset.new_tokens},
    }
    lengths, middle = module.method.plan.stage_lengths(sizes), preset.new_tokens[-1] // 2
    work = flops.Work(rows, lengths, images=rows, head=1)
    known = {
        "lengths": lengths,
        "memory": max(map(machine.memory, programs.values())),
        "flops": {"prefill": flops.forward(module, work, counted(module.implementation))},  # vision included
        # In the middle of the long answer.
        "decode_bytes_per_token": flops.decode_bytes(module, rows, tuple(n + middle for n in lengths)),
        "cache_bytes_per_image": flops.cache_bytes(module, 1, lengths),
    }
    return params, timed, known


def lower_answer(
    module: VLMModule, tree: dict[str, Any], batch: Batch, sizes: tuple[Size, ...], room: int
) -> tuple[jax.stages.Lowered, jax.stages.Lowered, Callable[[Any, Any], Any]]:
    """Of answers of `room` tokens: the first one, the rest, and how these two, compiled, give an answer."""
    first = prefill.lower(tree, batch, module=module, sizes=sizes, room=room)
    logits, caches = jax.tree.map(_shape, first.out_info)
    # No end token: every row decodes to the end.
    fixed: dict[str, Any] = {"module": module, "max_new_tokens": room, "end_tokens": (), "pad_token": 0}
    rest = decode.lower(tree, caches, logits, None, None, **fixed)

    def answer(begin: Callable[..., Any], go_on: Callable[..., Any]) -> Any:
        logits, caches = begin(tree, batch)
        return go_on(tree, caches, logits, None, None)[0]

    return first, rest, answer


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def measure(preset: Preset, specs: tuple[str, ...], batch: int, against: str | None) -> list[dict[str, Any]]:
    """One record per compression, and per peer; all measured in turn."""
    timed: dict[str, Programs] = {}
    paper: dict[str, dict[str, Any]] = {}
    have: Params = {}
    for spec in specs:
        have, timed[spec], paper[spec] = prepare(preset, spec, batch, have)
    if against:
        from benchmarks.peers import hugging_face  # needs torch

        timed |= hugging_face(preset.config, preset.dtype, *prompts(preset.config, batch, TEXT), preset.new_tokens)
    flat = {(name, part): program for name, parts in timed.items() for part, program in parts.items()}
    seconds = machine.alternate(flat, preset.repeats)
    return [
        {"name": name, "batch": batch, "seconds": {part: seconds[name, part] for part in parts}} | paper.get(name, {})
        for name, parts in timed.items()
    ]


def tables(result: machine.Result) -> str:
    """Markdown of a result: the first token, then answers."""
    full = {record["batch"]: record for record in result["records"] if record["name"] == "full"}
    (short, long), first, answers = result["new_tokens"], [], []
    for record in result["records"]:
        seconds, batch, base = record["seconds"], record["batch"], full[record["batch"]]
        paper = record if "flops" in record else base  # a peer computes what `full` does
        gained = base["seconds"]["prefill"] / seconds["prefill"]
        allowed = base["flops"]["prefill"] / paper["flops"]["prefill"]
        peak = paper["flops"]["prefill"] / seconds["prefill"] / result["peak"]
        row = {"": record["name"], "batch": batch}
        times = {"first token ms": 1000 * seconds["prefill"], "of matrix peak": peak, "speed-up": gained}
        times |= {"FLOPs allow": allowed, "reached": gained / allowed}
        token = (seconds[f"answer {long}"] - seconds[f"answer {short}"]) / (long - short)
        bandwidth = paper["decode_bytes_per_token"] / token / result["bandwidth"]
        rates = {"decode ms/token": 1000 * token, "tokens/s": batch / token, "of bandwidth": bandwidth}
        for room, part in ((room, f"answer {room}") for room in (short, long)):
            rates[f"images/s, {room} tokens"] = batch / seconds[part]
            rates[f"speed-up, {room} tokens"] = base["seconds"][part] / seconds[part]
        if paper is record:
            times["vision ms"] = 1000 * seconds["vision"]
            rates["cache MiB/image"] = record["cache_bytes_per_image"] / 2**20
            rates["memory GiB"] = record["memory"] / 2**30
        first.append(row | times)
        answers.append(row | rates)
    return f"First token (vision and prefill):\n\n{machine.table(first)}\n\nAnswers:\n\n{machine.table(answers)}"


def run(name: str, preset: Preset, cases: dict[int, tuple[str, ...]], against: str | None = None) -> machine.Result:
    records: list[dict[str, Any]] = []
    for batch, specs in cases.items():
        records += measure(preset, specs, batch, None if records else against)
    more = machine.measured(name, preset) | {"text": TEXT, "new_tokens": preset.new_tokens}
    return machine.result("inference", records, **more)


if __name__ == "__main__":
    flags: dict[str, Any] = {"preset": {"choices": PRESETS, "default": "cpu"}, "against": {"choices": ("torch",)}}
    machine.command(
        __doc__, lambda preset, against: run(preset, PRESETS[preset], CASES[preset], against), tables, **flags
    )
