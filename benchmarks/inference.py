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
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from benchmarks import machine
from benchmarks.shapes import PRESETS, Params, Preset, batch_of, counted, prompts, random_params
from victor_jax.analysis import flops
from victor_jax.compression.plan import Size
from victor_jax.compression.spec import parse
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
    "7b": {16: ("full", *map(victor, (8, 16, 32, 64, 128, 256)), *(victor(8, layer) for layer in (1, 2, 5)))}
    | {batch: ("full", victor(8)) for batch in (1, 4, 32)},
}


def prepare(preset: Preset, spec: str, rows: int, have: Params) -> tuple[Params, Programs, dict[str, Any]]:
    """Of one compression: its parameters; what is timed (the vision tower, the first token with all that goes before
    it, whole answers); what is known without running."""
    config, short = preset.config, preset.new_tokens[0]
    module = VLMModule(config, parse(spec, config), jnp.dtype(preset.dtype), preset.attention)
    params = random_params(module, have)
    batch, sizes = batch_of(module, rows, TEXT, supervised=False)
    tree, batch = unflatten_dict(params, sep="/"), jax.device_put(batch)
    programs = compiled(module, tree, batch, sizes, preset.new_tokens)

    def answer(room: int) -> Any:
        logits, caches = programs[f"prefill {room}"](tree, batch)
        return programs[f"decode {room}"](tree, caches, logits, jnp.float32(0), jax.random.key(0))[0]

    timed: Programs = {
        "vision": lambda: programs["vision"](tree, batch.pixels),
        "prefill": lambda: programs[f"prefill {short}"](tree, batch),
        **{f"answer {room}": partial(answer, room) for room in preset.new_tokens},
    }
    most, lengths = max(map(machine.memory, programs.values())), module.method.plan.stage_lengths(sizes)
    return params, timed, {"lengths": lengths, "memory": most, **on_paper(preset, module, rows, lengths)}


def compiled(
    module: VLMModule, tree: dict, batch: Batch, sizes: tuple[Size, ...], new_tokens: tuple[int, ...]
) -> dict[str, jax.stages.Compiled]:
    """The vision tower alone, and prefill and decode for each length of answer."""

    def see(params: dict, pixels: jax.Array) -> Any:
        return module.apply({"params": params}, pixels, method=VLMModule.visual_tokens)

    def lower_decode(room: int) -> jax.stages.Lowered:
        logits, caches = jax.eval_shape(partial(prefill, module=module, sizes=sizes, room=room), tree, batch)
        # No end token: every row decodes to the end.
        static = {"module": module, "max_new_tokens": room, "end_tokens": (), "pad_token": 0, "greedy": True}
        return decode.lower(tree, caches, logits, jnp.float32(0), jax.random.key(0), **static)

    lower: dict[str, Callable[[], jax.stages.Lowered]] = {"vision": lambda: jax.jit(see).lower(tree, batch.pixels)}
    for room in new_tokens:
        lower[f"prefill {room}"] = partial(prefill.lower, tree, batch, module=module, sizes=sizes, room=room)
        lower[f"decode {room}"] = partial(lower_decode, room)
    with ThreadPoolExecutor() as pool:  # XLA compiles on the cores that tracing leaves idle
        return dict(zip(lower, pool.map(lambda lower: lower().compile(), lower.values()), strict=True))


def on_paper(preset: Preset, module: VLMModule, rows: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    """FLOPs of the first token, vision included; bytes of one decoded token, in the middle of the long answer."""
    work, middle = flops.Work(rows, lengths, images=rows, head=1), preset.new_tokens[-1] // 2
    return {
        "flops": {"prefill": flops.forward(module, work, counted(module.implementation))},
        "decode_bytes_per_token": flops.decode_bytes(module, rows, tuple(n + middle for n in lengths)),
        "cache_bytes_per_image": flops.cache_bytes(module, 1, lengths),
    }


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
        is_ours = "flops" in record
        paper = record if is_ours else base  # a peer computes what `full` does
        gained = base["seconds"]["prefill"] / seconds["prefill"]
        allowed = base["flops"]["prefill"] / paper["flops"]["prefill"]
        share = paper["flops"]["prefill"] / seconds["prefill"] / result["peak"]
        vision = f"{1000 * seconds['vision']:.1f}" if is_ours else ""
        line = [record["name"], str(batch), vision, f"{1000 * seconds['prefill']:.1f}", f"{share:.0%}", f"{gained:.2f}"]
        first.append([*line, *([f"{allowed:.2f}", f"{gained / allowed:.0%}"] if is_ours else ["", ""])])
        token = (seconds[f"answer {long}"] - seconds[f"answer {short}"]) / (long - short)
        share = paper["decode_bytes_per_token"] / token / result["bandwidth"]
        line = [record["name"], str(batch), f"{1000 * token:.2f}", f"{batch / token:.0f}", f"{share:.0%}"]
        for part in (f"answer {short}", f"answer {long}"):
            line += [f"{batch / seconds[part]:.2f}", f"{base['seconds'][part] / seconds[part]:.2f}"]
        sizes = ["", ""]
        if is_ours:
            sizes = [f"{record['cache_bytes_per_image'] / 2**20:.1f}", f"{record['memory'] / 2**30:.2f}"]
        answers.append([*line, *sizes])
    columns = ["", "batch", "vision ms", "first token ms", "of matrix peak", "speed-up", "FLOPs allow", "reached"]
    decoding = ["", "batch", "decode ms/token", "tokens/s", "of bandwidth"]
    for room in (short, long):
        decoding += [f"images/s, {room} tokens", "speed-up"]
    tables = machine.table(columns, first), machine.table([*decoding, "cache MiB/image", "memory GiB"], answers)
    return f"First token (vision and prefill):\n\n{tables[0]}\n\nAnswers:\n\n{tables[1]}"


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
