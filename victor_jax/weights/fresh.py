"""What no checkpoint has, drawn from a seed as its declaration says, the same on every machine."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError, join_names
from victor_jax.models.config import VLMConfig
from victor_jax.models.parameters import Constant, Declared, Embedding, Normal, Start, Uniform
from victor_jax.weights.checkpoint import Checkpoint, expected, own_parameters
from victor_jax.weights.names import OWN, REGISTERS
from victor_jax.weights.tensors import Index, Tensor, cast, first_rows, repeated


def drawn(name: str, shape: tuple[int, ...], start: Start, seed: int) -> Tensor:
    """One tensor as its declaration says, float32, drawn when it is read; its name makes it differ from the others."""
    assert not isinstance(start, Embedding), "an embedding is read, not drawn"

    def read(index: Index) -> np.ndarray:
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        match start:
            case Normal(std):
                values = rng.standard_normal(shape, np.float32) * np.float32(std)
            case Uniform(bound):
                values = rng.uniform(-bound, bound, shape).astype(np.float32)
            case Constant(value):
                values = np.full(shape, value, np.float32)
        return values[index]

    return Tensor(shape, np.dtype(np.float32), read)


def with_own(checkpoint: Checkpoint, method: Method, seed: int | None) -> dict[str, Tensor]:
    """The checkpoint's tensors with exactly the parameters of its own that the method needs. Where it has none they are
    drawn from the seed; without a seed that is an error, since answers would mean nothing."""
    needed = own_parameters(checkpoint.config, method)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(OWN)}
    held = checkpoint.own
    if not needed:
        return tensors
    before, serving = parse(checkpoint.compression, checkpoint.config), set[str]()
    # What was trained as several plans, or chooses among them, serves each of them alone.
    is_several = bool(before.sampled or before.fork) and held.keys() >= needed.keys()
    chooser = chooser_of(checkpoint.config, method)
    # What brings no parameters may be added to what it was trained with: a cut above a compressor, say.
    if _names(checkpoint.compression) <= _names(method.spec) and (
        is_several or held.keys() | chooser == needed.keys() | chooser
    ):
        trained = own_parameters(checkpoint.config, before)
        serving = {
            name for name in needed.keys() & held.keys() if _serves(held[name], needed[name], trained[name].nested)
        }
    if not _choices(method) <= _choices(before):
        serving -= chooser
    lacking = needed.keys() - serving
    if lacking and (seed is None or (held and not lacking <= chooser)):
        raise UserError(_lacking(checkpoint, method, needed, serving))
    kept = {name: first_rows(held[name], needed[name].shape) for name in serving}
    return tensors | kept | {name: _started(name, needed[name], tensors, seed or 0) for name in lacking}


def chooser_of(config: VLMConfig, method: Method) -> set[str]:
    """The names of what chooses a plan for each row."""
    return own_parameters(config, method).keys() - own_parameters(config, replace(method, fork=None)).keys()


def _choices(method: Method) -> set[str]:
    """The plans that it chooses among, whatever is done before the language tower."""
    return {end.spec.rpartition("+")[2] for end in method.fork.ends} if method.fork else set()


def _lacking(checkpoint: Checkpoint, method: Method, needed: dict[str, Declared], serving: set[str]) -> str:
    """What the method needs and the checkpoint does not have, and the command that trains it."""
    trained = method.spec.replace("policy", "sampled")  # networks are trained before what chooses among them
    own, command = checkpoint.own, f"python train.py --config=configs/finetune.py:{trained}"
    if needed.keys() - serving <= chooser_of(checkpoint.config, method):
        return (
            f"{checkpoint.folder} has nothing that chooses a plan for each row as {method.spec} does: train it first, "
            f"`victor-jax train-policy --model={checkpoint.folder} --compression={method.spec} --data=FILE "
            "--images=DIR --out=DIR`"
        )
    if not own:
        return (
            f"{checkpoint.folder} lacks {described(needed)}, which {method.spec} learns: train first, `{command} "
            f"--config.init_from={checkpoint.folder} --workdir=DIR --config.data.path=FILE --config.data.images=DIR`, "
            "or give load a seed, which draws what nobody trained"
        )
    found, asked = (
        described({name: leaf for name, leaf in these.items() if name not in serving}, shapes=True)
        for these in (own, needed)
    )
    return (
        f"{checkpoint.folder} was trained with {found} ({checkpoint.compression}), {method.spec} asks for {asked}: "
        f"parameters of one method or size cannot serve another; `{command} …` trains those, from a model without a "
        "compression"
    )


def _started(name: str, leaf: Declared, tensors: dict[str, Tensor], seed: int) -> Tensor:
    """A method's own parameter before training."""
    if isinstance(leaf.start, Embedding):
        return repeated(tensors["language/embedding"], leaf.start.token, leaf.shape[0])
    return drawn(name, leaf.shape, leaf.start, seed)


def _names(compression: str) -> set[str]:
    return {written.partition(":")[0] for written in compression.split("+")}


def _serves(tensor: Tensor, leaf: Declared, nested: bool) -> bool:
    """`nested`: trained so that its first rows serve alone."""
    if not nested:
        return tensor.shape == leaf.shape
    return tensor.shape[0] >= leaf.shape[0] and tensor.shape[1:] == leaf.shape[1:]


def described(own: Mapping[str, Tensor | Declared], shapes: bool = False) -> str:
    """`8 registers` or, of other parameters, their names."""
    names = [
        name.removeprefix(OWN) + (f" {leaf.shape}" if shapes else "") for name, leaf in own.items() if name != REGISTERS
    ]
    registers = [f"{own[REGISTERS].shape[0]} registers"] if REGISTERS in own else []
    return join_names([*registers, *names])


def checkpoint(config: VLMConfig, seed: int, dtype: str = "float32") -> Checkpoint:
    """A whole model of random weights, each tensor drawn when it is read."""
    tensors = {
        name: cast(drawn(name, leaf.shape, leaf.start, seed), np.dtype(dtype))
        for name, leaf in expected(config).items()
    }
    return Checkpoint("random", Path("random"), config, tensors)
