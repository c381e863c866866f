"""A checkpoint of any format: an architecture and lazy tensors under our names, with every tensor accounted for."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

from flax.traverse_util import flatten_dict

from victor_jax.compression.plan import Compression, Plan
from victor_jax.errors import UserError, join_names
from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import VLMModule, abstract_params
from victor_jax.prompt import Prompt
from victor_jax.weights.names import REGISTERS
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
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The type that most of its bytes have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.nbytes
        return max(sizes, key=lambda name: sizes[name])


def check(tensors: dict[str, Tensor], config: VLMConfig, source: str) -> None:
    """One error for everything that is missing, unexpected or wrongly shaped."""
    expected = expected_shapes(config)
    held = {name: tensor.shape for name, tensor in tensors.items() if name != REGISTERS}
    problems = []
    if missing := sorted(expected.keys() - held.keys()):
        problems.append(f"lacks {join_names(missing)}")
    if unexpected := sorted(held.keys() - expected.keys()):
        problems.append(f"holds unexpected {join_names(unexpected)}")
    if misshaped := [
        f"{name} as {held[name]} where {expected[name]} is expected"
        for name in sorted(expected.keys() & held.keys())
        if held[name] != expected[name]
    ]:
        problems.append(f"holds {join_names(misshaped)}")
    if odd := [name for name, tensor in tensors.items() if tensor.dtype.name not in FLOATS]:
        kinds = sorted({tensors[name].dtype.name for name in odd})
        problems.append(f"holds {join_names(odd)} as {' and '.join(kinds)} where a float type is expected")
    registers = tensors.get(REGISTERS)
    if registers and (len(registers.shape) != 2 or registers.shape[1] != config.language.width):
        problems.append(f"holds registers as {registers.shape} where (M, {config.language.width}) is expected")
    if problems:
        raise UserError(f"{source} {'; it '.join(problems)}")


@functools.lru_cache(maxsize=8)
def expected_shapes(config: VLMConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a whole checkpoint, by our names; the vision tower with the layers that no plan runs."""
    depth = config.vision.depth
    whole = replace(config, feature_levels=(*config.feature_levels[:-1], depth))
    shapes: dict[str, tuple[int, ...]] = {}
    full = Compression(registers=0, plan=Plan((config.language.depth,), ()))
    for path, leaf in flatten_dict(abstract_params(VLMModule(whole, full)), sep="/").items():
        part, *rest = path.split("/")
        if rest and rest[0].startswith("stages_"):
            layers = depth if part == "vision" else leaf.shape[0]
            for layer in range(layers):
                shapes[f"{part}/layers/{layer}/{'/'.join(rest[1:])}"] = leaf.shape[1:]
        else:
            shapes[path] = leaf.shape
    for leaf_name in ("scale", "bias"):
        shapes[f"vision/post_norm/{leaf_name}"] = (config.vision.width,)
    return shapes
