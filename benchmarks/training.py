"""python -m benchmarks.training --preset={cpu,7b,7b-lora} [--out=FILE]: speed and memory of the training step.

The step that train.py compiles, AdamW and all, on one device and on rows of one image each: stage 1 (projector and
registers learn) and stage 2 (the language tower, too, or adapters in it), full and Victor, beside what the closed-form
count of FLOPs says is possible.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import machine
from benchmarks.shapes import PRESETS, Preset, batch_of, counted, kernel, random_params
from victor_jax.analysis import flops
from victor_jax.compression.spec import parse
from victor_jax.models.language import Remat
from victor_jax.models.layers import Lora, is_adapter
from victor_jax.models.vlm import VLMModule
from victor_jax.sharding.mesh import make_mesh
from victor_jax.training.optimizer import in_float32, make_optimizer
from victor_jax.training.settings import OptimizerSettings
from victor_jax.training.step import State, make_accumulate, make_update, zero_sums

SPECS = ("full", "victor:registers=8,layer=3")
PARAM_DTYPE = "float32"  # of what is trained
REMAT: Remat = "full"
LOSS_CHUNK = 512
# The recipes' values; none of them changes how long a step takes.
OPTIMIZER = OptimizerSettings(2e-5, 0.0, 0.03, True, 0.0, 0.9, 0.999, 1e-8, 1.0, "float32")


@dataclass(frozen=True)
class Stage:
    name: str
    trained: tuple[str, ...]  # of projector, compression, language
    text: int  # text tokens of a row
    rows: int
    lora: Lora | None = None


BRIDGE = ("projector", "compression")
SMALL = (Stage("stage 1", BRIDGE, text=64, rows=2), Stage("stage 2", (*BRIDGE, "language"), text=256, rows=2))
ADAPTERS = Stage("stage 2, LoRA", BRIDGE, text=256, rows=16, lora=Lora(rank=128, alpha=256.0, dropout=0.05))
STAGES = {"cpu": SMALL, "7b": tuple(replace(stage, rows=16) for stage in SMALL), "7b-lora": (ADAPTERS,)}


def start(preset: Preset, stage: Stage, spec: str) -> tuple[Callable[[], jax.Array], dict[str, Any]]:
    """Runs one compiled step after the other on random weights; and what is known before they run."""
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = NamedSharding(mesh, PartitionSpec())  # on one device no axis cuts anything
    method = parse(spec, preset.config)
    module = VLMModule(preset.config, method, jnp.dtype(preset.dtype), kernel(preset), REMAT, stage.lora)
    frozen = jax.device_put(random_params(module, {}), whole)
    learning = [path for path in frozen if is_adapter(path) or path.split("/")[0] in stage.trained]
    train = {path: frozen.pop(path).astype(PARAM_DTYPE) for path in learning}
    optimizer = make_optimizer(OPTIMIZER, train)
    moments = jax.jit(lambda params: optimizer.init(in_float32(params)))(train)
    batch, sizes = batch_of(module, stage.rows, stage.text, supervised=True)
    state = State(train, moments, jnp.float32(0))
    state, batch, number, rate = jax.device_put((state, batch, np.int32(0), np.float32(1e-5)), whole)

    zeros = jax.jit(lambda: zero_sums(train), out_shardings=whole)
    accumulate: Any = jax.jit(
        make_accumulate(module, LOSS_CHUNK), static_argnames="sizes", donate_argnames="sums", out_shardings=whole
    )
    update: Any = jax.jit(make_update(optimizer), donate_argnames="state", out_shardings=whole)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        sums = zeros()
        accumulate = accumulate.lower(train, frozen, sums, batch, number, number, sizes=sizes).compile()
        update = update.lower(state, sums, rate).compile()
    compile_seconds = time.perf_counter() - began

    lengths = method.plan.stage_lengths(sizes)
    cost = flops.training_step(
        module,
        flops.Work.of_loss(stage.rows, lengths, images=stage.rows, chunk=LOSS_CHUNK),
        stage.trained,
        counted(module.implementation),
    )
    kinds = {"trained": train, "frozen": frozen, "optimizer": moments, "gradients": sums.grads, "batch": batch}
    memory = {kind: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for kind, tree in kinds.items()}
    memory["temporaries"] = max(one.memory_analysis().temp_size_in_bytes for one in (accumulate, update))
    del sums
    record = {"stage": stage.name, "name": spec, "rows": stage.rows, "text": stage.text, "lengths": lengths}
    record |= {"flops": cost.flops, "model_flops": cost.model_flops}
    record |= {"memory": memory, "compile_seconds": compile_seconds}

    def run_step() -> jax.Array:
        nonlocal state
        sums, _ = accumulate(state.train, frozen, zeros(), batch, number, number)
        state, metrics = update(state, sums, rate)
        return metrics["loss"]

    return run_step, record


def measure(preset: Preset, stage: Stage) -> list[dict[str, Any]]:
    """One record per compression."""
    records = []
    for specs in (SPECS,) if preset.in_turn else [(spec,) for spec in SPECS]:
        started = {spec: start(preset, stage, spec) for spec in specs}
        seconds = machine.alternate({spec: run_step for spec, (run_step, _) in started.items()}, preset.repeats)
        records += [record | {"seconds": seconds[spec]} for spec, (_, record) in started.items()]
        del started  # its memory is needed
    return records


def tables(result: machine.Result) -> str:
    """Markdown of a result: time, then memory and compiling."""
    full = {record["stage"]: record for record in result["records"] if record["name"] == "full"}
    times, memory = [], []
    for record in result["records"]:
        base, seconds, held = full[record["stage"]], record["seconds"], record["memory"]
        gained, allowed = base["seconds"] / seconds, base["flops"] / record["flops"]
        # Tokens are those of the data, text and visual: registers and padding are no gain.
        tokens = record["rows"] * (record["text"] + result["tokens_per_image"])
        name = {"": f"{record['stage']}, {record['name']}"}
        speed = {key: record[key] for key in ("rows", "text")}
        speed |= {"step ms": 1000 * seconds, "tokens/s": tokens / seconds}
        for column, count in (("of matrix peak", "model_flops"), ("with recomputation", "flops")):
            speed[column] = record[count] / seconds / result["peak"]
        times.append(name | speed | {"speed-up": gained, "FLOPs allow": allowed, "reached": gained / allowed})
        kinds = held | {"together": sum(held.values())}
        gib = {f"{kind} GiB": size / 2**30 for kind, size in kinds.items()}
        memory.append(name | gib | {"compile s": record["compile_seconds"]})
    return f"{machine.table(times)}\n\n{machine.table(memory)}"


def run(name: str, preset: Preset, stages: tuple[Stage, ...]) -> machine.Result:
    records = [record for stage in stages for record in measure(preset, stage)]
    more = machine.measured(name, preset) | {"remat": REMAT, "tokens_per_image": preset.config.features_per_image}
    return machine.result("training", records, **more)


if __name__ == "__main__":
    machine.command(
        __doc__,
        lambda preset: run(preset, PRESETS[preset.removesuffix("-lora")], STAGES[preset]),
        tables,
        preset={"choices": STAGES, "default": "cpu"},
    )
