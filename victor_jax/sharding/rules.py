"""Where each parameter lies on the mesh: ordered rules over paths. The first match wins; every parameter must match.

Layers of a stage are stacked, so their leaves lead with a layer axis that is never cut.
"""

import math
import re

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from victor_jax.errors import UserError

RULES: tuple[tuple[str, P], ...] = (
    # Kernels [L, in, out]: outputs of q, k, v, gate and up over `tensor`, then inputs of o and down.
    (r"(vision|language)/stages_\d+/attention/[qkv]/kernel", P(None, "fsdp", "tensor")),
    (r"(vision|language)/stages_\d+/mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"(vision|language)/stages_\d+/(attention/o|mlp/down)/kernel", P(None, "tensor", "fsdp")),
    (r"(vision|language)/stages_\d+/(attention/[qkv]|mlp/up)/bias", P(None, "tensor")),
    (r"(vision|language)/stages_\d+/(attention/o|mlp/down)/bias", P()),
    # Adapters [L, in, rank] and [L, rank, out]: over their long axis.
    (r"language/stages_\d+/.+/lora_a", P(None, ("fsdp", "tensor"), None)),
    (r"language/stages_\d+/.+/lora_b", P(None, None, ("fsdp", "tensor"))),
    (r"(vision|language)/stages_\d+/norm[12]/(scale|bias)", P()),
    (r"language/embedding", P("tensor", "fsdp")),
    (r"language/head", P("fsdp", "tensor")),
    (r"language/norm/scale", P()),
    (r"projector/linear_1/kernel", P("fsdp", "tensor")),
    (r"projector/linear_2/kernel", P("tensor", "fsdp")),
    (r"projector/linear_1/bias", P("tensor")),
    (r"projector/linear_2/bias", P()),
    # Small: whole on every device.
    (r"vision/(patch_embedding/kernel|class_embedding|position_embedding)", P()),
    (r"vision/pre_norm/(scale|bias)", P()),
    (r"compression/.+", P()),
)


def sharding_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """A parameter's place; an axis that its mesh axis does not divide is an error, never a silent copy."""
    for pattern, spec in RULES:
        if re.fullmatch(pattern, path):
            for size, cut in zip(shape, spec, strict=False):
                axes = cut if isinstance(cut, tuple) else (cut,) if cut else ()
                parts = math.prod(mesh.shape[axis] for axis in axes)
                if size % parts:
                    axis = " * ".join(axes)
                    raise UserError(
                        f"parameter {path} {shape} does not divide over the mesh: {size} by {axis}={parts}; choose "
                        f"another {axis}"
                    )
            return NamedSharding(mesh, spec)
    raise UserError(f"parameter {path} has no sharding rule: add one to victor_jax/sharding/rules.py")
