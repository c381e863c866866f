"""What training starts from, drawn from a seed, the same on every machine: registers, a projector, a whole model."""

import warnings
from pathlib import Path

import numpy as np

from victor_jax.compression.plan import Compression
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import REGISTER_STD
from victor_jax.weights.checkpoint import Checkpoint, expected_shapes
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.tensors import Index, Tensor, cast, from_array


def registers(count: int, width: int, seed: int) -> np.ndarray:
    """float32 [M, D]."""
    return np.random.default_rng((seed, 0)).normal(0, REGISTER_STD, (count, width)).astype(np.float32)


def projector(config: VLMConfig, seed: int) -> dict[str, np.ndarray]:
    """By our names; uniform in ±1/sqrt(inputs), as the linear layers of the original LLaVA begin."""
    rng = np.random.default_rng((seed, 1))
    inputs, width = config.vision.width * len(config.feature_levels), config.language.width
    layers = {"linear_1": (inputs, width)} | ({"linear_2": (width, width)} if config.projector.kind == "mlp" else {})
    drawn = {}
    for name, shape in layers.items():
        bound = shape[0] ** -0.5
        drawn[f"projector/{name}/kernel"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        if config.projector.bias:
            drawn[f"projector/{name}/bias"] = rng.uniform(-bound, bound, width).astype(np.float32)
    return drawn


def with_registers(checkpoint: Checkpoint, method: Compression, seed: int) -> dict[str, Tensor]:
    """The checkpoint's tensors with exactly the registers that the method needs."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != REGISTERS}
    if not method.registers:
        return tensors
    if checkpoint.registers == method.registers:
        return checkpoint.tensors
    if checkpoint.registers:
        raise UserError(
            f"{checkpoint.folder} was trained with {checkpoint.registers} registers, {method.spec} asks for "
            f"{method.registers}: registers of one count cannot serve another"
        )
    warnings.warn(
        f"{checkpoint.folder} has no registers: {method.registers} are drawn from seed {seed} and untrained, so "
        "answers under " + method.spec + " mean nothing before training",
        stacklevel=3,
    )
    drawn = registers(method.registers, checkpoint.config.language.width, seed)
    return tensors | {REGISTERS: from_array(drawn)}


def checkpoint(config: VLMConfig, seed: int, dtype: str = "float32") -> Checkpoint:
    """A whole model of random weights, each tensor drawn when it is read: for benchmarks and smoke tests."""
    shapes = expected_shapes(config)
    tensors = {
        name: cast(_random(name, shape, (seed, 3, number)), np.dtype(dtype))
        for number, (name, shape) in enumerate(shapes.items())
    }
    return Checkpoint("random", Path("random"), config, tensors)


def _random(name: str, shape: tuple[int, ...], seed: tuple[int, ...]) -> Tensor:
    """Norm scales are 1; everything else is normal, small enough that activations stay finite."""

    def read(index: Index) -> np.ndarray:
        if name.endswith("scale"):
            return np.ones(shape, np.float32)[index]
        drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
        drawn *= 0.02
        return drawn[index]

    return Tensor(shape, np.dtype(np.float32), read, "random")
