"""Parts that training starts from: registers and a projector, drawn from a seed, the same on every machine."""

import numpy as np

from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import REGISTER_STD


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
