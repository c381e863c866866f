"""From settings to a run: the module, its parameters trained and frozen on the mesh, and the compiled programs.

Shapes and shardings are known before a byte of weights is read, so nothing is ever held twice.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from victor_jax.analysis import flops
from victor_jax.compression.plan import Plan, Size, length_of
from victor_jax.compression.spec import parse
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.layers import Lora, is_adapter
from victor_jax.models.sequence import Batch
from victor_jax.models.sequence import Sequence as Positions
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import choose
from victor_jax.sharding.mesh import BATCH, make_mesh, number_on_mesh, of_parameter, rows_on_mesh
from victor_jax.training.optimizer import Params, in_float32, make_optimizer
from victor_jax.training.settings import Settings
from victor_jax.training.step import State, Sums, make_accumulate, make_update, row_losses, zero_sums
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint, own_parameters
from victor_jax.weights.place import place, put
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import Tensor, cast

Abstract = dict[str, jax.ShapeDtypeStruct]
PART_ROWS = 16  # of one device: more of them hardly make 7B faster, and cost memory


def open_start(settings: Settings) -> Checkpoint:
    """What `init_from` names: a folder, or random weights in the architecture of `size`."""
    if not settings.init_from:
        raise UserError('config.init_from is empty: give a checkpoint folder, or "random" for a smoke test')
    if settings.init_from == "random":
        return fresh.checkpoint(SIZES[settings.size], settings.seed)
    vision, projector = settings.vision_from or None, settings.projector_from or None
    return open_checkpoint(settings.init_from, vision, projector, settings.seed)


@dataclass(frozen=True)
class Run:
    """What is known before data and weights are read: the model, every parameter's shape and place, the programs."""

    settings: Settings
    parts: int  # of a batch, see `parts_of`
    module: VLMModule
    mesh: Mesh
    optimizer: optax.GradientTransformation
    train: Abstract  # by path, with shardings
    frozen: Abstract
    state: State  # abstract, with shardings
    sums: Sums  # the same
    # Programs, compiled on first use.
    zeros: Callable[[], Sums]
    accumulate: Callable[..., tuple[Sums, jax.Array]]  # see make_accumulate
    update: Callable[..., tuple[State, dict[str, jax.Array]]]  # see make_update
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]  # see row_losses

    @property
    def part_rows(self) -> int:
        return self.settings.batch_size // self.parts

    def sampled(self, number: int) -> Plan | None:
        """The plan of the step of this number, where the method samples them."""
        plans = self.module.method.sampled
        return plans[np.random.default_rng((self.settings.seed, number)).integers(len(plans))] if plans else None

    def step(
        self,
        state: State,
        frozen: Params,
        parts: Iterable[tuple[Batch, Shape]],  # each with the rows of this host
        number: int,
        rate: float,
    ) -> tuple[State, dict[str, Any]]:
        """One training step -> the next state and the metrics, `row_loss` a list with an array for each part.

        Everything is dispatched and nothing is awaited: the next part is on its way while one is computed.
        """
        step, sums, row_loss = number_on_mesh(np.int32(number), self.mesh), self.zeros(), []
        plan = self.sampled(number)
        for which, (part, shape) in enumerate(parts):
            place = number_on_mesh(np.int32(which), self.mesh)
            rows, sizes = rows_on_mesh(part, self.mesh), sizes_of(self, shape, plan)
            sums, of_rows = self.accumulate(state.train, frozen, sums, rows, step, place, sizes=sizes, plan=plan)
            row_loss.append(of_rows)
        state, metrics = self.update(state, sums, number_on_mesh(np.float32(rate), self.mesh))
        return state, metrics | {"row_loss": row_loss}


def make_run(settings: Settings, config: VLMConfig, mesh: Mesh) -> Run:
    parts = parts_of(settings, mesh.shape["data"] * mesh.shape["fsdp"])
    platform, dtype = mesh.devices.flat[0].platform, jnp.dtype(settings.dtype)
    attention = choose(settings.attention, platform=platform, dtype=dtype, head_dims=config.head_dims)
    method = parse(settings.compression, config)
    adapters = Lora(**asdict(settings.lora)) if settings.lora.rank else None
    module = VLMModule(config, method, dtype, attention, settings.remat, adapters)
    train, frozen = abstract_parameters(settings, module, mesh)
    optimizer = make_optimizer(settings.optimizer, train)  # type: ignore[arg-type]  # shapes do as well
    state = abstract_state(optimizer, train, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    sums = abstract_sums(train, mesh)
    of_state, of_sums = jax.tree.map(lambda leaf: leaf.sharding, (state, sums))
    zeros = jax.jit(lambda: zero_sums(train), out_shardings=of_sums)  # type: ignore[arg-type]
    accumulate = jax.jit(
        make_accumulate(module, settings.loss_chunk, settings.seed),
        static_argnames=("sizes", "plan"),
        donate_argnames="sums",
        out_shardings=(of_sums, everywhere),
    )
    update = jax.jit(
        make_update(optimizer, settings.bad_step.spike_factor),
        donate_argnames="state",
        out_shardings=(of_state, everywhere),
    )

    def evaluate(train: Params, frozen: Params, batch: Batch, *, sizes: tuple[Size, ...]) -> Any:
        return row_losses(module, frozen | train, batch, None, sizes, settings.loss_chunk)

    evaluate = jax.jit(evaluate, static_argnames="sizes", out_shardings=everywhere)
    return Run(
        settings, parts, module, mesh, optimizer, train, frozen, state, sums, zeros, accumulate, update, evaluate
    )


def parts_of(settings: Settings, devices: int) -> int:
    """In how many parts a batch is computed: `micro_batches`, or where that is 0 the fewest that leave no device more
    than PART_ROWS rows of a part. Fewer are better: each part gathers the weights once, and pads rows for itself.
    `devices`: how many share the rows, data * fsdp of the mesh."""
    batch = settings.batch_size

    def fits(parts: int) -> bool:
        return batch % (parts * devices) == 0 and batch // (parts * devices) <= PART_ROWS

    parts = settings.micro_batches or next(filter(fits, range(1, batch + 1)), 1)
    if batch // parts % devices:
        raise UserError(
            f"config.batch_size={batch} in {parts} micro_batches gives {batch // parts} rows, which do not divide "
            f"over data * fsdp = {devices} devices"
        )
    return parts


def described(run: Run, start: Checkpoint) -> str:
    """Where the weights of a run come from."""
    settings = run.settings
    random = f"random weights (size {settings.size}, seed {settings.seed})"
    weights = random if settings.init_from == "random" else f"{start.folder} ({start.format})"
    own = own_parameters(start.config, run.module.method)
    return f"{weights}, {fresh.described(own)} drawn from seed {settings.seed}" if own and not start.own else weights


def abstract_parameters(settings: Settings, module: VLMModule, mesh: Mesh) -> tuple[Abstract, Abstract]:
    """The trained and the frozen ones."""
    train: Abstract = {}
    frozen: Abstract = {}
    for path, leaf in parameters(module).items():
        trained = is_adapter(path) or path.split("/")[0] in settings.trainable
        dtype = jnp.dtype(settings.param_dtype if trained else settings.dtype)
        sharding = of_parameter(path, leaf.shape, leaf.spec, mesh)
        (train if trained else frozen)[path] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
    if not train:
        raise UserError(f"config.trainable={settings.trainable} leaves nothing to train")
    return train, frozen


def automatic_parts(settings: Settings, devices: Sequence[jax.Device]) -> int:
    mesh = mesh_of(settings, devices)
    return parts_of(settings, mesh.shape["data"] * mesh.shape["fsdp"])


def mesh_of(settings: Settings, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of the settings, where -1 stands for as many devices as there is work for."""
    wanted, rows = settings.mesh, settings.batch_size // (settings.micro_batches or 1)
    data, fsdp, tensor = wanted.data, wanted.fsdp, wanted.tensor
    if fsdp == -1:
        left = len(devices) // (data * max(tensor, 1)) or 1
        fsdp = left if tensor != -1 else math.gcd(left, max(rows // data, 1))
    if tensor == -1:
        tensor = len(devices) // (data * fsdp) or 1
    return make_mesh(data, fsdp, tensor, devices)


def abstract_state(optimizer: optax.GradientTransformation, train: Abstract, mesh: Mesh) -> State:
    """Moments are float32 and sharded like their parameter; counters are replicated."""
    whole = NamedSharding(mesh, PartitionSpec())
    masters = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in train.items()}

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        like = train.get(getattr(path[-1], "key", ""))  # a moment has its parameter's path
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole if like is None else like.sharding)

    moments = jax.tree.map_with_path(placed, jax.eval_shape(optimizer.init, masters))
    return State(train, moments, jax.ShapeDtypeStruct((), jnp.float32, sharding=whole))  # type: ignore[arg-type]


def abstract_sums(train: Abstract, mesh: Mesh) -> Sums:
    """Sums of gradients are sharded like their parameter."""
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    of_train: Any = {path: leaf.sharding for path, leaf in train.items()}
    return jax.tree.map(placed, jax.eval_shape(zero_sums, train), Sums(of_train, whole, whole))  # type: ignore[arg-type]


# --- from a checkpoint to parameters on devices ---------------------------------------------------------------------


def start_tensors(run: Run, start: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's, still unread, with the method's own parameters: those that it holds, or drawn ones. What does
    not fit the method is an error here."""
    if run.module.method.fork:
        raise UserError(
            f"config.compression={run.module.method.spec} chooses a plan for each row, which `victor-jax train-policy` "
            "teaches and train.py does not: docs/methods.md says what to train before it"
        )
    return fresh.with_own(start, run.module.method, run.settings.seed)


def trained_params(run: Run, tensors: dict[str, Tensor]) -> Params:
    """As a run begins; one that is resumed has them from its checkpoint."""
    declared, seed = parameters(run.module), run.settings.seed
    adapters = {path: leaf for path, leaf in run.train.items() if is_adapter(path)}
    drawn = {path: fresh.drawn(path, leaf.shape, declared[path].start, seed) for path, leaf in adapters.items()}
    params = {path: put(cast(drawn[path], leaf.dtype), leaf.format) for path, leaf in adapters.items()}
    return params | place({path: leaf for path, leaf in run.train.items() if path not in adapters}, tensors, run.module)


def first_state(run: Run, train: Params) -> State:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state.optimizer)
    moments = jax.jit(lambda params: run.optimizer.init(in_float32(params)), out_shardings=shardings)(train)
    average = jax.device_put(np.float32(0), run.state.loss_average.sharding)
    return State(train, moments, average)


# --- batches --------------------------------------------------------------------------------------------------------


def abstract_part(run: Run, shape: Shape) -> Batch:
    """One part of the global batch, with shardings: what `accumulate` is compiled for."""
    rows, size = run.part_rows, run.module.config.vision.image_size
    over_rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=over_rows)

    line = of((length_of(shape.counts(run.module.method.registers)),), jnp.int32)
    pixels = of((shape.images, 3, size, size), jnp.uint8) if shape.images else None
    return Batch(Positions(line, line, line, of((), jnp.int32)), line, pixels)


def sizes_of(run: Run, shape: Shape, plan: Plan | None = None) -> tuple[Size, ...]:
    method = run.module.method
    return (plan or method.plan).sizes(shape.counts(method.registers))


def part_cost(run: Run, shape: Shape, plan: Plan | None = None) -> flops.StepCost:
    """FLOPs of one part of a batch, all devices together."""
    settings, rows = run.settings, run.part_rows
    lengths = (plan or run.module.method.plan).stage_lengths(sizes_of(run, shape, plan))
    work = flops.Work.of_loss(rows, lengths, rows * shape.images, settings.loss_chunk)
    return flops.training_step(run.module, work, settings.trainable)
