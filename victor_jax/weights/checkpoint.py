"""A checkpoint of any format: an architecture and lazy tensors under our names, with every tensor accounted for."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from victor_jax.compression.plan import Layers, Method, Plan
from victor_jax.errors import UserError, join_names
from victor_jax.models.config import VLMConfig
from victor_jax.models.parameters import Constant, Declared
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.prompt import Prompt
from victor_jax.weights.names import OWN, REGISTERS, with_key
from victor_jax.weights.place import sources
from victor_jax.weights.tensors import Tensor

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Checkpoint:
    format: str  # what was recognised, for the user
    folder: Path
    config: VLMConfig
    tensors: dict[str, Tensor]  # by our per-layer names
    compression: str = "full"  # the written form of what it was trained with
    skipped: tuple[str, ...] = field(default=(), repr=False)  # keys known to carry nothing we need
    prompt: Prompt = field(default_factory=Prompt)

    @property
    def registers(self) -> int:
        """How many registers it holds."""
        return self.tensors[REGISTERS].shape[0] if REGISTERS in self.tensors else 0

    @property
    def own(self) -> dict[str, Tensor]:
        """The parameters of the method that it was trained with."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith(OWN)}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The type that most of its bytes have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.nbytes
        return max(sizes, key=lambda name: sizes[name])


def check(checkpoint: Checkpoint, method: Method, source: str) -> None:
    """One error for everything that is missing, unexpected or wrongly shaped; `method` is what it was trained with."""
    whole = expected(checkpoint.config) | own_parameters(checkpoint.config, method)
    wanted = {name: leaf.shape for name, leaf in whole.items()}
    held = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    types = {name: tensor.dtype.name for name, tensor in checkpoint.tensors.items()}
    names = sorted(wanted.keys() | held.keys())
    called = {name: with_key(name, checkpoint.tensors, checkpoint.format) for name in names}
    both = [name for name in called if name in wanted and name in held]
    found = [
        ("lacks", [title for name, title in called.items() if name not in held]),
        ("holds unexpected", [title for name, title in called.items() if name not in wanted]),
        ("holds", [f"{called[n]} as {held[n]} where {wanted[n]} is expected" for n in both if held[n] != wanted[n]]),
        ("holds", [f"{called[n]} as {types[n]} where a float is expected" for n in both if types[n] not in FLOATS]),
    ]
    if problems := [f"{what} {join_names(names)}" for what, names in found if names]:
        raise UserError(f"{source} {'; it '.join(problems)}")


@functools.lru_cache(maxsize=8)
def expected(config: VLMConfig) -> dict[str, Declared]:
    """Every tensor of a whole checkpoint, by our names; the vision tower with the layers that no plan runs."""
    levels = (*config.feature_levels[:-1], config.vision.depth)
    module = VLMModule(replace(config, feature_levels=levels), Method(Plan((Layers(config.language.depth),))))
    found: dict[str, Declared] = {}
    for path, leaf in parameters(module).items():
        names = sources(path, module)
        if names != [path]:
            of_layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.value.dtype)
            leaf = leaf.replace(value=of_layer, axes=leaf.axes[1:])
        found |= dict.fromkeys(names, leaf)
    for leaf_name, start in (("scale", Constant(1.0)), ("bias", Constant(0.0))):
        of_width = jax.ShapeDtypeStruct((config.vision.width,), np.float32)
        found[f"vision/post_norm/{leaf_name}"] = Declared(of_width, (None,), start)
    return found


def own_parameters(config: VLMConfig, method: Method) -> dict[str, Declared]:
    """What the method brings along."""
    if not (method.registers or method.compressor or method.own):
        return {}
    return {path: leaf for path, leaf in parameters(VLMModule(config, method)).items() if path.startswith(OWN)}
