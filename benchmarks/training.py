"""python -m benchmarks.training --preset={cpu,7b,7b-lora} [--out=FILE]: speed and memory of the training step.

The very step that training compiles, AdamW and all, on rows of one image each: stage 1 (projector and registers learn)
and stage 2 (the language tower, too, or adapters in it), full and Victor. Beside each time stands what the plan's own
count of FLOPs says is possible.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine
from benchmarks.shapes import Params, counted, prompts, random_params, sequence_of, small
from victor_jax.analysis import flops
from victor_jax.analysis.memory import device_bytes
from victor_jax.compression.plan import Kind
from victor_jax.compression.spec import parse
from victor_jax.models.config import VLMConfig
from victor_jax.models.language import Remat
from victor_jax.models.layers import Lora
from victor_jax.models.sequence import Batch
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.attention import Implementation
from victor_jax.ops.losses import IGNORE
from victor_jax.training.lora import is_adapter
from victor_jax.training.optimizer import in_float32, make_optimizer
from victor_jax.training.settings import OptimizerSettings
from victor_jax.training.step import State, StepSettings, make_step

SPECS = ("full", "victor:registers=8,layer=3")
# The recipes' values; none of them changes how long a step takes.
OPTIMIZER = OptimizerSettings(2e-5, 0.0, 0.03, 0.0, 0.9, 0.999, 1e-8, 1.0)


@dataclass(frozen=True)
class Stage:
    name: str
    trained: tuple[str, ...]  # of projector, registers, language
    text: int  # text tokens of a row
    rows: int
    lora: Lora | None = None


@dataclass(frozen=True)
class Preset:
    config: VLMConfig
    stages: tuple[Stage, ...]
    dtype: str
    param_dtype: str  # of what is trained
    attention: Implementation
    remat: Remat
    loss_chunk: int
    repeats: int
    in_turn: bool  # all compressions held at once and run in turn; else one after the other
    peak_size: int  # of the matrix that measures the device's peak
    bandwidth_size: int


BRIDGE = ("projector", "compression")
TOWER = (*BRIDGE, "language")
LORA = Lora(rank=128, alpha=256.0, dropout=0.05)
SEVEN = Preset(
    SIZES["7b"],
    (Stage("stage 1", BRIDGE, text=64, rows=16), Stage("stage 2", TOWER, text=256, rows=16)),
    dtype="bfloat16",
    param_dtype="float32",
    attention="cudnn",
    remat="full",
    loss_chunk=512,
    repeats=5,
    in_turn=False,
    peak_size=8192,
    bandwidth_size=32768,
)
PRESETS = {
    # LLaVA-1.5's proportions in small: 24 and 32 layers, 576 visual tokens.
    "cpu": Preset(
        small(256, 32, 24, 336),
        (Stage("stage 1", BRIDGE, text=64, rows=2), Stage("stage 2", TOWER, text=256, rows=2)),
        dtype="float32",
        param_dtype="float32",
        attention="xla",
        remat="full",
        loss_chunk=512,
        repeats=3,
        in_turn=True,
        peak_size=2048,
        bandwidth_size=8192,
    ),
    "7b": SEVEN,
    "7b-lora": replace(SEVEN, stages=(Stage("stage 2, LoRA", BRIDGE, text=256, rows=16, lora=LORA),)),
}


@dataclass
class Running:
    """A compiled step and the state that it moves."""

    step: jax.stages.Compiled
    state: State
    frozen: Params
    parts: tuple[Batch, ...]
    number: jax.Array
    rate: jax.Array

    def __call__(self) -> jax.Array:
        self.state, metrics = self.step(self.state, self.frozen, self.parts, self.number, self.rate)
        return metrics["loss"]


def rows_of(module: VLMModule, stage: Stage) -> tuple[Batch, tuple[int, ...]]:
    """A batch whose text after the image is supervised, and the static length of each stage of the plan."""
    sequence = sequence_of(module, prompts(module.config, stage.rows, stage.text))
    follows = np.roll(sequence.index, -1, axis=1)
    after_image = np.roll(np.maximum.accumulate(sequence.kinds == Kind.VISUAL, axis=1), -1, axis=1)
    is_text = np.roll(sequence.kinds == Kind.TEXT, -1, axis=1)
    is_text[:, -1] = False
    size = module.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (stage.rows, 1, 3, size, size), np.uint8)
    batch = Batch(sequence, np.where(is_text & after_image, follows, IGNORE).astype(np.int32), pixels)
    return batch, module.compression.plan.lengths(sequence.kinds)


def start(preset: Preset, stage: Stage, spec: str) -> tuple[Running, dict[str, Any]]:
    """The compiled step on random weights, and what is known of it before it runs."""
    config = preset.config
    method, dtype = parse(spec, config.language.depth), jnp.dtype(preset.dtype)
    module = VLMModule(config, method, dtype, preset.attention, preset.remat, stage.lora)
    drawn = random_params(module, {})
    train: Params = {}
    for path in [path for path in drawn if is_adapter(path) or path.split("/")[0] in stage.trained]:
        train[path] = drawn.pop(path).astype(preset.param_dtype)
    optimizer = make_optimizer(OPTIMIZER, train)
    state = State(train, _moments(optimizer, train), jnp.float32(0))
    batch, lengths = rows_of(module, stage)
    parts, number, rate = jax.device_put(((batch,), jnp.int32(0), jnp.float32(OPTIMIZER.learning_rate)))

    step = make_step(module, optimizer, StepSettings(preset.loss_chunk, spike_factor=0.0, seed=0))
    began = time.perf_counter()
    lowered = jax.jit(step, static_argnames="lengths", donate_argnums=0).lower(
        state, drawn, parts, number, rate, lengths=(lengths,)
    )
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began

    cost = flops.training_step(
        config,
        method.plan,
        flops.Work.of_loss(stage.rows, lengths, images=stage.rows, chunk=preset.loss_chunk),
        flops.Training(stage.trained, method.registers, preset.remat, stage.lora.rank if stage.lora else 0),
        causal=counted(preset.attention),
    )
    kinds = {"trained": state.train, "frozen": drawn, "optimizer": state.optimizer, "batch": parts}
    held = {kind: device_bytes(tree) for kind, tree in kinds.items()}
    record = {
        "stage": stage.name,
        "name": spec,
        "rows": stage.rows,
        "text": stage.text,
        "lengths": lengths,
        "flops": cost.parts.total.flops,
        "model_flops": cost.model_flops,
        "memory": held | {"temporaries": machine.memory(compiled).temporaries},
        "compile_seconds": compile_seconds,
    }
    return Running(compiled, state, drawn, parts, number, rate), record


def _moments(optimizer: optax.GradientTransformation, train: Params) -> optax.OptState:
    return jax.jit(lambda params: optimizer.init(in_float32(params)))(train)


def measure(preset: Preset, stage: Stage) -> list[dict[str, Any]]:
    """One record per compression."""
    records = []
    for specs in (SPECS,) if preset.in_turn else [(spec,) for spec in SPECS]:
        programs: dict[Any, Callable[[], Any]] = {}
        for spec in specs:
            programs[spec], record = start(preset, stage, spec)
            records.append(record)
        seconds = machine.alternate(programs, preset.repeats)
        for record in records[-len(specs) :]:
            record["seconds"] = seconds[record["name"]]
    return records


def tables(result: dict[str, Any]) -> str:
    """Markdown of a result: time, then memory and compiling."""
    records = result["records"]
    full = {record["stage"]: record for record in records if record["name"] == "full"}
    times, memory = [], []
    visual = result["tokens_per_image"]
    for record in records:
        base, seconds = full[record["stage"]], record["seconds"]
        gained, allowed = base["seconds"] / seconds, base["flops"] / record["flops"]
        name = [f"{record['stage']}, {record['name']}"]
        shape = [str(record["rows"]), str(record["text"])]
        speed = [f"{1000 * seconds:.0f}", f"{record['rows'] * (record['text'] + visual) / seconds:.0f}"]
        share = [f"{record[count] / seconds / result['peak']:.0%}" for count in ("model_flops", "flops")]
        times.append(name + shape + speed + share + [f"{gained:.2f}", f"{allowed:.2f}", f"{gained / allowed:.0%}"])
        held = record["memory"]
        gib = [f"{held[kind] / 2**30:.2f}" for kind in ("trained", "optimizer", "frozen", "temporaries")]
        memory.append([*name, *gib, f"{sum(held.values()) / 2**30:.2f}", f"{record['compile_seconds']:.1f}"])
    # Tokens are those of the data, text and visual: registers and padding are no gain.
    columns = ["", "rows", "text", "step ms", "tokens/s", "of matrix peak", "with recomputation"]
    kinds = ["trained GiB", "optimizer GiB", "frozen GiB", "activations and gradients GiB", "together GiB", "compile s"]
    compared = ["speed-up", "FLOPs allow", "reached"]
    return f"{machine.table([*columns, *compared], times)}\n\n{machine.table(['', *kinds], memory)}"


def run(name: str, preset: Preset) -> dict[str, Any]:
    dtype = jnp.dtype(preset.dtype)
    return {
        "benchmark": "training",
        "preset": name,
        "machine": machine.describe(),
        "dtype": preset.dtype,
        "param_dtype": preset.param_dtype,
        "attention": preset.attention,
        "remat": preset.remat,
        "config": asdict(preset.config),
        "tokens_per_image": preset.config.tokens_per_image,
        "peak": machine.matmul_peak(dtype, preset.peak_size),
        "bandwidth": machine.bandwidth(dtype, preset.bandwidth_size),
        "records": [record for stage in preset.stages for record in measure(preset, stage)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--out", help="a JSON file for benchmarks.report")
    given = parser.parse_args()
    result = run(given.preset, PRESETS[given.preset])
    machine.write(given.out, result)
    print(machine.heading(result), tables(result), sep="\n\n")


if __name__ == "__main__":
    main()
