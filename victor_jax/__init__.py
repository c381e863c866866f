"""Victor (visual compact token registers) in JAX: vision-language models that drop their visual tokens.

The public surface. Names are resolved when they are first used, so that importing this costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from victor_jax.errors import UserError
    from victor_jax.inference.sampling import Sampling
    from victor_jax.inference.vlm import VLM, load

__version__ = "0.2.0"  # a constant: the build reads it without importing

_HOMES = {
    "load": "victor_jax.inference.vlm",
    "VLM": "victor_jax.inference.vlm",
    "Sampling": "victor_jax.inference.sampling",
    "UserError": "victor_jax.errors",
}

__all__ = ["VLM", "Sampling", "UserError", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'victor_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
