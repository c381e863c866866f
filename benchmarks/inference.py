"""python -m benchmarks.inference --preset={cpu,7b} [--against=torch] [--out=FILE]: speed of answering.

The paper's protocol: prompts of one image and 64 text tokens, answers of 2 or 128 tokens, cache on; full and Victor,
vision, prefill and decode apart. Everything runs in one process, in turn, and medians are reported. Beside each
time stands what the plan's own count of FLOPs and bytes says is possible.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks import machine
from benchmarks.shapes import Params, counted, prompts, random_params, sequence_of, small
from victor_jax.analysis import flops
from victor_jax.compression.spec import parse
from victor_jax.inference.generate import decode, prefill
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import image_slots, images_per_row
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.attention import Implementation

TEXT = 64  # text tokens of a prompt


@dataclass(frozen=True)
class Preset:
    config: VLMConfig
    dtype: str
    attention: Implementation
    batch: int
    more_batches: tuple[int, ...]  # full, and the first of the registers
    registers: tuple[int, ...]  # at layer 3
    layers: tuple[int, ...]  # with the first of the registers
    new_tokens: tuple[int, int]  # of a short and of a long answer
    repeats: int
    peak_size: int  # of the matrix that measures the device's peak
    bandwidth_size: int  # of the one that measures its bandwidth: far larger than its caches


PRESETS = {
    # LLaVA-1.5's proportions in small: 24 and 32 layers, 576 visual tokens.
    "cpu": Preset(small(256, 32, 24, 336), "float32", "xla", 2, (), (8, 64, 256), (5,), (2, 128), 3, 2048, 8192),
    "7b": Preset(
        SIZES["7b"],
        "bfloat16",
        "cudnn",
        batch=16,
        more_batches=(1, 4, 32),
        registers=(8, 16, 32, 64, 128, 256),
        layers=(1, 2, 5),
        new_tokens=(2, 128),
        repeats=5,
        peak_size=8192,
        bandwidth_size=32768,
    ),
}


@dataclass(frozen=True)
class Case:
    """One compression at one batch: what it runs on, and what it costs on paper."""

    spec: str
    module: VLMModule
    params: Params
    given: tuple[Any, ...]  # sequence, pixels, slots, on the device
    lengths: tuple[int, ...]
    batch: int


def make_case(preset: Preset, spec: str, batch: int, have: Params) -> Case:
    config = preset.config
    module = VLMModule(config, parse(spec, config.language.depth), jnp.dtype(preset.dtype), preset.attention)
    sequence = sequence_of(module, prompts(config, batch, TEXT))
    slots = image_slots(images_per_row(sequence, config.tokens_per_image))
    lengths = module.compression.plan.lengths(sequence.kinds)
    given = jax.device_put((sequence, pixels(config, batch), slots))
    return Case(spec, module, random_params(module, have), given, lengths, batch)


def pixels(config: VLMConfig, images: int) -> np.ndarray:
    size = config.vision.image_size
    return np.random.default_rng(0).normal(size=(images, 3, size, size)).astype(np.float32)


def programs(case: Case, new_tokens: tuple[int, ...]) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """What a case compiles: the vision tower alone, and prefill and decode for each length of answer."""
    module, tree = case.module, unflatten_dict(case.params, sep="/")

    def see(params: dict, pixels: jax.Array, slots: jax.Array) -> Any:
        return module.apply({"params": params}, pixels, slots, case.batch, method=VLMModule.visual_tokens)

    def lower_decode(room: int, fill: Callable) -> jax.stages.Lowered:
        logits, caches = jax.eval_shape(fill, tree, *case.given)
        # No end token: every row decodes to the end.
        static = {"max_new_tokens": room, "end_tokens": (), "pad_token": 0, "greedy": True}
        return decode.lower(tree, caches, logits, jnp.float32(0), jax.random.key(0), module=module, **static)

    lowered = {"vision": lambda: jax.jit(see).lower(tree, *case.given[1:])}
    for room in new_tokens:
        static = {"module": module, "lengths": case.lengths, "room": room}
        lowered[f"prefill {room}"] = functools.partial(prefill.lower, tree, *case.given, **static)
        lowered[f"decode {room}"] = functools.partial(lower_decode, room, functools.partial(prefill, **static))
    return lowered


def runs(case: Case, compiled: dict[str, jax.stages.Compiled], new_tokens: tuple[int, ...]) -> dict[str, Callable]:
    """What is timed: the vision tower, the first token with all that goes before it, whole answers."""
    tree, temperature, key = unflatten_dict(case.params, sep="/"), jnp.float32(0), jax.random.key(0)

    def answer(room: int) -> Any:
        logits, caches = compiled[f"prefill {room}"](tree, *case.given)
        return compiled[f"decode {room}"](tree, caches, logits, temperature, key)[0]

    return {
        "vision": lambda: compiled["vision"](tree, *case.given[1:]),
        "prefill": lambda: compiled[f"prefill {new_tokens[0]}"](tree, *case.given),
        **{f"answer {room}": functools.partial(answer, room) for room in new_tokens},
    }


def on_paper(case: Case, new_tokens: tuple[int, ...]) -> dict[str, Any]:
    """FLOPs of the vision tower, of prefill (vision included), of each answer; of one decoded token its bytes, too."""
    config, plan = case.module.config, case.module.compression.plan
    kept = flops.Bytes(case.module.dtype.itemsize)
    work = flops.Work(case.batch, case.lengths, images=case.batch, head=1)
    parts = flops.prefill(config, plan, work, causal=counted(case.module.implementation), kept=kept)
    steps = [
        flops.decode(config, plan, case.batch, tuple(n + step + 1 for n in case.lengths), kept=kept).total
        for step in range(new_tokens[-1] - 1)
    ]
    total = {f"answer {room}": parts.total.flops + sum(s.flops for s in steps[: room - 1]) for room in new_tokens}
    cached = zip(plan.stages, case.lengths, strict=True)
    return {
        "flops": {"vision": parts.vision.flops + parts.projector.flops, "prefill": parts.total.flops, **total},
        "decode_bytes_per_token": sum(step.bytes for step in steps) / len(steps),  # averaged over the long answer
        "cache_bytes_per_image": sum(flops.cache_bytes(config, layers, 1, n, kept) for layers, n in cached),
    }


def measure(preset: Preset, specs: list[str], batch: int, against: str | None) -> list[dict[str, Any]]:
    """One record per compression, and per peer; all measured in turn. The first of `specs` is what peers run."""
    cases: list[Case] = []
    have: Params = {}
    for spec in specs:
        cases.append(make_case(preset, spec, batch, have))
        have |= cases[-1].params
    lowered = {(case.spec, name): f for case in cases for name, f in programs(case, preset.new_tokens).items()}
    compiled = machine.compile_all(lowered)
    of = {case.spec: {name: compiled[case.spec, name] for name in programs(case, preset.new_tokens)} for case in cases}
    timed = {case.spec: runs(case, of[case.spec], preset.new_tokens) for case in cases}
    if against:
        from benchmarks.peers import hugging_face

        asked = prompts(preset.config, batch, TEXT), pixels(preset.config, batch)
        timed |= hugging_face(cases[0].module, cases[0].params, asked, preset.new_tokens)
    flat = {(name, part): program for name, parts in timed.items() for part, program in parts.items()}
    seconds = machine.alternate(flat, preset.repeats)
    records: list[dict[str, Any]] = [
        {"name": name, "batch": batch, "seconds": {part: seconds[name, part] for part in parts}}
        for name, parts in timed.items()
    ]
    for case, record in zip(cases, records, strict=False):
        most = max(machine.memory(program).total for program in of[case.spec].values())
        record |= {"lengths": case.lengths, "memory": most, **on_paper(case, preset.new_tokens)}
    return records


def tables(result: dict[str, Any]) -> str:
    """Markdown of a result: the first token, then answers."""
    records = result["records"]
    full = {record["batch"]: record for record in records if record["name"] == "full"}
    first, answers = [], []
    for record in records:
        name = [record["name"], str(record["batch"])]
        first.append(name + _first_token(result, record, full[record["batch"]]))
        answers.append(name + _answers(result, record, full[record["batch"]]))
    columns = ["", "batch", "vision ms", "first token ms", "of matrix peak", "speed-up", "FLOPs allow", "reached"]
    decoding = ["decode ms/token", "tokens/s", "of bandwidth"]
    for room in result["new_tokens"]:
        decoding += [f"images/s, {room} tokens", "speed-up"]
    decoding += ["cache MiB/image", "memory GiB"]
    return "\n\n".join(
        (
            "First token (vision and prefill):",
            machine.table(columns, first),
            "Answers:",
            machine.table(["", "batch", *decoding], answers),
        )
    )


def _first_token(result: dict, record: dict, full: dict) -> list[str]:
    seconds, cost = record["seconds"], record.get("flops")
    vision = f"{1000 * seconds['vision']:.1f}" if "vision" in seconds else ""
    gained = full["seconds"]["prefill"] / seconds["prefill"]
    line = [vision, f"{1000 * seconds['prefill']:.1f}"]
    if not cost:  # a peer: it computes what `full` does
        share = full["flops"]["prefill"] / seconds["prefill"] / result["peak"]
        return [*line, f"{share:.0%}", f"{gained:.2f}", "", ""]
    allowed = full["flops"]["prefill"] / cost["prefill"]
    share = cost["prefill"] / seconds["prefill"] / result["peak"]
    return [*line, f"{share:.0%}", f"{gained:.2f}", f"{allowed:.2f}", f"{gained / allowed:.0%}"]


def _answers(result: dict, record: dict, full: dict) -> list[str]:
    seconds, batch = record["seconds"], record["batch"]
    token = seconds_per_token(result, record)
    paper = record if "flops" in record else full
    share = paper["decode_bytes_per_token"] / token / result["bandwidth"]
    line = [f"{1000 * token:.2f}", f"{batch / token:.0f}", f"{share:.0%}"]
    for room in result["new_tokens"]:
        answer = f"answer {room}"
        line += [f"{batch / seconds[answer]:.2f}", f"{full['seconds'][answer] / seconds[answer]:.2f}"]
    line.append(f"{record['cache_bytes_per_image'] / 2**20:.1f}" if "flops" in record else "")
    return [*line, f"{record['memory'] / 2**30:.2f}" if "flops" in record else ""]


def seconds_per_token(result: dict, record: dict) -> float:
    """Of decoding: what the long answer takes longer than the short one."""
    short, long = result["new_tokens"]
    return (record["seconds"][f"answer {long}"] - record["seconds"][f"answer {short}"]) / (long - short)


def run(name: str, preset: Preset, against: str | None) -> dict[str, Any]:
    dtype = jnp.dtype(preset.dtype)
    result: dict[str, Any] = {
        "benchmark": "inference",
        "preset": name,
        "machine": machine.describe(peers=against is not None),
        "dtype": preset.dtype,
        "attention": preset.attention,
        "config": asdict(preset.config),
        "text": TEXT,
        "new_tokens": preset.new_tokens,
        "peak": machine.matmul_peak(dtype, preset.peak_size),
        "bandwidth": machine.bandwidth(dtype, preset.bandwidth_size),
    }
    victor = [f"victor:registers={m},layer=3" for m in preset.registers]
    victor += [f"victor:registers={preset.registers[0]},layer={k}" for k in preset.layers]
    result["records"] = measure(preset, ["full", *victor], preset.batch, against)
    for batch in preset.more_batches:
        result["records"] += measure(preset, ["full", victor[0]], batch, None)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--against", choices=("torch",))
    parser.add_argument("--out", help="a JSON file for benchmarks.report")
    given = parser.parse_args()
    result = run(given.preset, PRESETS[given.preset], given.against)
    machine.write(given.out, result)
    print(machine.heading(result), tables(result), sep="\n\n")


if __name__ == "__main__":
    main()
