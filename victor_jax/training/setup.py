"""From settings to what a run holds: the module, its parameters split and placed, and the compiled step.

Abstract first: shapes and shardings are known before a byte is read, so nothing is ever held twice.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from victor_jax.compression.plan import Size, length_of
from victor_jax.compression.spec import parse
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import Lora
from victor_jax.models.sequence import Batch
from victor_jax.models.sequence import Sequence as Positions
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import check_implementation
from victor_jax.sharding.mesh import BATCH, make_mesh, of_parameter
from victor_jax.training import lora
from victor_jax.training.optimizer import OptimizerSettings, Params, in_float32, make_optimizer, schedule
from victor_jax.training.settings import Settings
from victor_jax.training.step import PartSizes, State, StepSettings, make_step, row_losses
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.place import place, put
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import Tensor, cast

Abstract = dict[str, jax.ShapeDtypeStruct]


def open_start(settings: Settings) -> Checkpoint:
    """What `init_from` names: a folder, or random weights in the architecture of `size`."""
    if not settings.init_from:
        raise UserError('config.init_from is empty: give a checkpoint folder, or "random" for a smoke test')
    if settings.init_from == "random":
        return fresh.checkpoint(size(settings), settings.seed)
    vision, projector = settings.vision_from or None, settings.projector_from or None
    return open_checkpoint(settings.init_from, vision, projector, settings.seed)


def size(settings: Settings) -> VLMConfig:
    if settings.size not in SIZES:
        raise UserError(f"config.size={settings.size!r} is unknown: known are {', '.join(SIZES)}")
    return SIZES[settings.size]


def make_module(settings: Settings, config: VLMConfig) -> VLMModule:
    adapters = settings.lora
    return VLMModule(
        config,
        parse(settings.compression, config),
        jnp.dtype(settings.dtype),
        settings.attention,  # type: ignore[arg-type]  # checked where settings are read
        settings.remat,  # type: ignore[arg-type]
        Lora(adapters.rank, adapters.alpha, adapters.dropout) if adapters.rank else None,
    )


def is_trained(path: str, settings: Settings) -> bool:
    return lora.is_adapter(path) or path.split("/")[0] in settings.trainable


@dataclass(frozen=True)
class Run:
    """The static half of a run: everything that is known before data and weights."""

    settings: Settings
    module: VLMModule
    mesh: Mesh
    optimizer: optax.GradientTransformation
    train: Abstract  # by path, with shardings
    frozen: Abstract
    state: State  # abstract, with shardings
    step: Callable[..., tuple[State, dict[str, jax.Array]]]  # compiled on first use
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]


def make_run(settings: Settings, config: VLMConfig, mesh: Mesh, total_steps: int) -> Run:
    check_batch(settings, mesh)
    platform = mesh.devices.flat[0].platform
    check_implementation(settings.attention, platform=platform, dtype=jnp.dtype(settings.dtype))
    module = make_module(settings, config)
    train: Abstract = {}
    frozen: Abstract = {}
    for path, leaf in parameters(module).items():
        trained = is_trained(path, settings)
        kept = jnp.dtype(settings.param_dtype if trained else settings.dtype)
        place = of_parameter(path, leaf.shape, leaf.spec, mesh)
        (train if trained else frozen)[path] = jax.ShapeDtypeStruct(leaf.shape, kept, sharding=place)
    if not train:
        raise UserError(f"config.trainable={settings.trainable} leaves nothing to train")
    chosen = _optimizer_settings(settings)
    optimizer = make_optimizer(chosen, total_steps, train)  # type: ignore[arg-type]  # shapes do as well
    state = abstract_state(optimizer, train, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    step = make_step(
        module,
        optimizer,
        schedule(chosen.learning_rate, total_steps, chosen.warmup_ratio),
        StepSettings(settings.loss_chunk, settings.bad_step.spike_factor, settings.seed),
    )

    def evaluate(train: Params, frozen: Params, batch: Batch, *, sizes: tuple[Size, ...]) -> Any:
        return row_losses(module, frozen | train, batch, None, sizes, settings.loss_chunk)

    return Run(
        settings,
        module,
        mesh,
        optimizer,
        train,
        frozen,
        state,
        jax.jit(
            step,
            static_argnames="sizes",
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), whole),
        ),
        jax.jit(evaluate, static_argnames="sizes", out_shardings=whole),
    )


def mesh_of(settings: Settings, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of the settings, where -1 stands for as many devices as there is work for."""
    wanted, rows = settings.mesh, settings.batch_size // settings.micro_batches
    sizes = (wanted.data, wanted.fsdp, wanted.tensor)
    left, without = divmod(len(devices), math.prod(size for size in sizes if size != -1))
    if without and -1 in sizes:
        raise UserError(
            f"a mesh of data={wanted.data}, fsdp={wanted.fsdp}, tensor={wanted.tensor} does not fit: the sizes other "
            f"than -1 must divide the number of devices, {len(devices)}"
        )
    fsdp = left if wanted.fsdp == -1 else wanted.fsdp
    if wanted.fsdp == wanted.tensor == -1:
        fsdp = math.gcd(left, max(rows // wanted.data, 1))
    tensor = len(devices) // wanted.data // fsdp if wanted.tensor == -1 else wanted.tensor
    mesh = make_mesh(wanted.data, fsdp, tensor, devices)
    check_batch(settings, mesh)
    return mesh


def check_batch(settings: Settings, mesh: Mesh) -> None:
    rows, parts = settings.batch_size // settings.micro_batches, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise UserError(
            f"config.batch_size={settings.batch_size} in {settings.micro_batches} micro_batches gives {rows} rows, "
            f"which do not divide over data * fsdp = {parts} devices"
        )


def _optimizer_settings(settings: Settings) -> OptimizerSettings:
    o = settings.optimizer
    projector = o.projector_learning_rate or None
    return OptimizerSettings(o.learning_rate, projector, o.warmup_ratio, o.weight_decay, o.b1, o.b2, o.eps, o.clip_norm)


def abstract_state(optimizer: optax.GradientTransformation, train: Abstract, mesh: Mesh) -> State:
    """Moments are float32 and lie where their parameter lies; counters lie everywhere."""
    whole = NamedSharding(mesh, PartitionSpec())
    masters = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding) for path, leaf in train.items()
    }

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        like = train.get(getattr(path[-1], "key", ""))  # a moment stands under its parameter's path
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole if like is None else like.sharding)

    moments = jax.tree.map_with_path(placed, jax.eval_shape(optimizer.init, masters))
    return State(train, moments, jax.ShapeDtypeStruct((), jnp.float32, sharding=whole))  # type: ignore[arg-type]


def start_tensors(run: Run, start: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's, with the registers of this run: its own, or drawn ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are untrained: they are about to be
        return fresh.with_own(start, run.module.method, run.settings.seed)


def start_params(run: Run, start: Checkpoint) -> tuple[Params, Params]:
    """Trained and frozen parameters on their devices."""
    tensors = start_tensors(run, start)
    declared = parameters(run.module)
    adapters = {
        path: put(
            cast(fresh.drawn(path, leaf.shape, declared[path].start, run.settings.seed), leaf.dtype), leaf.sharding
        )
        for path, leaf in run.train.items()
        if lora.is_adapter(path)
    }
    learning = {path: leaf for path, leaf in run.train.items() if path not in adapters}
    return adapters | place(learning, tensors, run.module), place(run.frozen, tensors, run.module)


def start_state(run: Run, train: Params) -> State:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state.optimizer)
    moments = jax.jit(lambda params: run.optimizer.init(in_float32(params)), out_shardings=shardings)(train)
    average = jax.device_put(np.float32(0), run.state.loss_average.sharding)
    return State(train, moments, average)


def abstract_part(run: Run, shape: Shape) -> Batch:
    """One part of the global batch, with shardings: what the step is compiled for."""
    rows, size = run.settings.batch_size // run.settings.micro_batches, run.module.config.vision.image_size
    over_rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=over_rows)

    line = of((length_of(shape.counts(run.module.method.registers)),), jnp.int32)
    pixels = of((shape.images, 3, size, size), jnp.uint8) if shape.images else None
    return Batch(Positions(line, line, line, of((), jnp.int32)), line, pixels)


def sizes_of(run: Run, parts: tuple[Shape, ...]) -> PartSizes:
    method = run.module.method
    return tuple(method.plan.sizes(part.counts(method.registers)) for part in parts)


def row_shares(mesh: Mesh, rows: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Which hosts hold which of `rows`: each share once. A tensor axis over several hosts gives them one share."""
    held: dict[int, set[int]] = {}
    places: Any = NamedSharding(mesh, PartitionSpec(BATCH)).devices_indices_map((rows,))
    for device, (cut,) in places.items():
        held.setdefault(device.process_index, set()).update(range(*cut.indices(rows)))
    shares: dict[tuple[int, ...], list[int]] = {}
    for host, its in held.items():
        shares.setdefault(tuple(sorted(its)), []).append(host)
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != rows:
        raise UserError(
            f"a mesh of {dict(mesh.shape)} cuts the rows unevenly over the hosts: choose other config.mesh.data, "
            "fsdp and tensor"
        )
    return [(tuple(hosts), share) for share, hosts in sorted(shares.items())]


def on_mesh(batch: Any, mesh: Mesh) -> Any:
    """This host's rows of a global batch -> global arrays."""
    over_rows = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(over_rows, np.asarray(part)), batch)
