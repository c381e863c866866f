"""python -m benchmarks.inference --preset={cpu,7b} [--against=torch] [--out=FILE]: speed of answering.

The paper's protocol: prompts of one image and 64 text tokens, answers of 2 or 128 tokens, cache on; full and Victor,
vision, prefill and decode apart. Everything runs in one process, in turn, and medians are reported. Beside each
time stands what the plan's own FLOP count says is possible.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from victor_jax.analysis import flops
from victor_jax.compression.spec import parse
from victor_jax.inference.generate import decode, prefill
from victor_jax.models.config import VisionConfig, VLMConfig
from victor_jax.models.sequence import image_slots, images_per_row, lay_out
from victor_jax.models.sizes import SIZES, llava
from victor_jax.models.vlm import VLMModule, abstract_params
from victor_jax.weights.names import flatten, nest

TEXT_BEFORE, TEXT = 35, 64  # text tokens of a prompt, those before its image among them


@dataclass(frozen=True)
class Preset:
    config: VLMConfig
    dtype: str
    batch: int
    more_batches: tuple[int, ...]
    registers: tuple[int, ...]  # at layer 3
    layers: tuple[int, ...]  # with the first of the registers
    new_tokens: tuple[int, ...]
    repeats: int
    peak_size: int  # of the matrix that measures the device's peak


# LLaVA-1.5's proportions in small: 24 and 32 layers, 576 visual tokens, one head in 32 of the width.
SMALL = llava(128, 344, 32, VisionConfig(32, 128, 24, 4, 336, 14, "quick_gelu", 1e-5), head_dim=32)
SMALL = replace(SMALL, image_token=1000, pad_token=1001, language=replace(SMALL.language, vocabulary=1002))
PRESETS = {
    "cpu": Preset(SMALL, "float32", 2, (), (8, 64), (), (2, 128), 3, 2048),
    "7b": Preset(SIZES["7b"], "bfloat16", 16, (1, 4, 32), (8, 16, 32, 64, 128, 256), (1, 2, 5), (2, 128), 5, 8192),
}


@dataclass(frozen=True)
class Case:
    """One compression at one batch: its programs, and what they cost on paper."""

    spec: str
    batch: int
    module: VLMModule
    params: dict[str, jax.Array]
    lengths: tuple[int, ...]
    programs: dict[str, Callable[[], Any]]
    flops: dict[str, int]
    cache_bytes_per_image: int


def random_params(module: VLMModule) -> dict[str, jax.Array]:
    """Norm scales are 1, all else is normal and small: activations stay finite."""
    params = {}
    for number, (path, leaf) in enumerate(flatten(abstract_params(module)).items()):
        key = jax.random.key(number)
        if path.endswith("scale"):
            params[path] = jnp.ones(leaf.shape, module.dtype)
        else:
            params[path] = jax.jit(lambda key, shape=leaf.shape: 0.02 * jax.random.normal(key, shape, module.dtype))(
                key
            )
    return params


def prompts(config: VLMConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids in the Hugging Face convention, and pixels."""
    rng = np.random.default_rng(0)
    text = rng.integers(3, 900, (batch, TEXT))
    image = np.full((batch, config.tokens_per_image), config.image_token)
    ids = np.concatenate([text[:, :TEXT_BEFORE], image, text[:, TEXT_BEFORE:]], axis=1)
    size = config.vision.image_size
    return ids, rng.normal(size=(batch, 3, size, size)).astype(np.float32)


def make_case(preset: Preset, spec: str, batch: int, params: dict[str, jax.Array] | None = None) -> Case:
    config = preset.config
    method = parse(spec, config.language.depth)
    module = VLMModule(config, method, jnp.dtype(preset.dtype))
    params = random_params(module) if params is None else params
    tree = nest(params)
    ids, pixels = prompts(config, batch)
    sequence = lay_out(
        ids,
        np.ones_like(ids),
        image_token=config.image_token,
        tokens_per_image=config.tokens_per_image,
        registers=method.registers,
    )
    slots = image_slots(images_per_row(sequence, config.tokens_per_image))
    lengths = method.plan.lengths(sequence.kinds)
    given = jax.device_put((sequence, pixels, slots))

    see = jax.jit(
        lambda params, pixels, slots: module.apply(
            {"params": params}, pixels, slots, batch, method=VLMModule.visual_tokens
        )
    )

    def fill(room: int) -> Any:
        return prefill(tree, *given, module=module, lengths=lengths, room=room)

    def answer(room: int) -> Any:
        logits, caches = fill(room)
        return decode(
            tree,
            caches,
            logits,
            jnp.float32(0),
            jax.random.key(0),
            module=module,
            max_new_tokens=room,
            end_tokens=(),
            pad_token=0,
            greedy=True,
        )[0]  # no end token: every row decodes to the end

    programs: dict[str, Callable[[], Any]] = {
        "vision": lambda: see(tree, given[1], given[2]),
        "prefill": lambda: fill(2),  # the vision tower included
        **{f"answer {room}": functools.partial(answer, room) for room in preset.new_tokens},
    }
    work = flops.Work(batch, lengths, images=batch, head=1)
    parts = flops.prefill(config, method.plan, work)
    cost = {"vision": parts.vision.flops + parts.projector.flops, "prefill": parts.total.flops}
    for room in preset.new_tokens:
        steps = [flops.decode(config, method.plan, batch, tuple(n + t + 1 for n in lengths)) for t in range(room - 1)]
        cost[f"answer {room}"] = parts.total.flops + sum(step.total.flops for step in steps)
    kept = flops.Bytes(jnp.dtype(preset.dtype).itemsize)
    cache = sum(
        flops.cache_bytes(config, layers, 1, length, kept)
        for layers, length in zip(method.plan.stages, lengths, strict=True)
    )
    return Case(spec, batch, module, params, lengths, programs, cost, cache)


def measure(preset: Preset, specs: list[str], batch: int, against: str | None) -> list[dict]:
    """One record per compression, and per peer; all measured in turn. The first of `specs` is what peers run."""
    cases = [make_case(preset, spec, batch) for spec in specs]
    programs = {f"{case.spec}|{name}": program for case in cases for name, program in case.programs.items()}
    if against:
        from benchmarks.peers import hugging_face

        programs |= hugging_face(cases[0].module, cases[0].params, prompts(preset.config, batch), preset.new_tokens)
    seconds = machine.alternate(programs, preset.repeats)
    records = []
    for name in dict.fromkeys(key.split("|")[0] for key in seconds):
        times = {key.split("|")[1]: value for key, value in seconds.items() if key.startswith(name + "|")}
        case = next((case for case in cases if case.spec == name), None)
        record: dict[str, Any] = {"name": name, "batch": batch, "seconds": times}
        if case:
            record |= {
                "lengths": case.lengths,
                "flops": case.flops,
                "cache_bytes_per_image": case.cache_bytes_per_image,
                "memory": _memory(),
            }
        records.append(record)
    return records


def _memory() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def rows(records: list[dict], new_tokens: tuple[int, ...]) -> list[list[str]]:
    """One line per record: times, throughput, and the speed-up over `full` beside the one that FLOPs allow."""
    lines = []
    for record in records:
        full = next(r for r in records if r["name"] == "full" and r["batch"] == record["batch"])
        seconds, batch, last = record["seconds"], record["batch"], f"answer {new_tokens[-1]}"
        decoding = seconds[last] - seconds["prefill"]
        line = [
            record["name"],
            str(batch),
            _ms(seconds.get("vision")),
            _ms(seconds["prefill"]),
            _ms(decoding / (new_tokens[-1] - 1)),
        ]
        line += [f"{batch / seconds[f'answer {room}']:.2f}" for room in new_tokens]
        gained = full["seconds"]["prefill"] / seconds["prefill"]
        if "flops" in record:
            allowed = full["flops"]["prefill"] / record["flops"]["prefill"]
            line += [f"{gained:.2f}", f"{allowed:.2f}", f"{gained / allowed:.0%}"]
            line.append(f"{record['cache_bytes_per_image'] / 2**20:.1f}")
        else:
            line += [f"{gained:.2f}", "", "", ""]
        lines.append(line)
    return lines


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--against", choices=("torch",))
    parser.add_argument("--out", help="a JSON file for benchmarks.report")
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    hardware = machine.describe(peers=given.against is not None)
    print(hardware)
    dtype = jnp.dtype(preset.dtype)
    peak = machine.matmul_peak(dtype, preset.peak_size)
    read = machine.bandwidth(dtype, preset.peak_size)
    print(f"matrix peak {peak / 1e12:.3f} TFLOP/s, bandwidth {read / 1e9:.1f} GB/s ({preset.dtype}, measured)")
    victor = [f"victor:registers={m},layer=3" for m in preset.registers]
    victor += [f"victor:registers={preset.registers[0]},layer={k}" for k in preset.layers]
    records = measure(preset, ["full", *victor], preset.batch, given.against)
    for batch in preset.more_batches:
        records += measure(preset, ["full", victor[0]], batch, given.against)
    answers = [f"images/s, {room} new tokens" for room in preset.new_tokens]
    columns = [
        "",
        "batch",
        "vision ms",
        "vision + prefill ms",
        "decode ms/token",
        *answers,
        "prefill speed-up",
        "FLOPs allow",
        "reached",
        "cache MiB/image",
    ]
    print(machine.table(columns, rows(records, preset.new_tokens)))
    machine.write(
        given.out,
        {
            "benchmark": "inference",
            "preset": given.preset,
            "machine": hardware,
            "peak": peak,
            "bandwidth": read,
            "new_tokens": preset.new_tokens,
            "records": records,
        },
    )


if __name__ == "__main__":
    main()
