"""AdamW with a warm-up and a cosine, its arithmetic and moments in float32 whatever the parameters are kept in."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]  # by path


@dataclass(frozen=True)
class OptimizerSettings:
    learning_rate: float
    projector_learning_rate: float | None  # of projector and registers, where it differs
    warmup_ratio: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float


def schedule(peak: float, total_steps: int, warmup_ratio: float) -> Callable[[jax.Array], jax.Array]:
    """Step 0 … -> learning rate: a line from 0 over ceil(ratio * total) steps, then half a cosine to 0."""
    warmup = math.ceil(warmup_ratio * total_steps)

    def rate(step: jax.Array) -> jax.Array:
        done = (step - warmup) / max(1, total_steps - warmup)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return peak * jnp.where(step < warmup, step / max(1, warmup), cosine)

    return rate


def make_optimizer(settings: OptimizerSettings, total_steps: int, params: Params) -> optax.GradientTransformation:
    """Decays matrices only, never registers; projector and registers may have a rate of their own."""
    decays = {path: leaf.ndim > 1 and _is_matrix(path) for path, leaf in params.items()}
    own = settings.projector_learning_rate
    # Both rates follow one schedule, so that their ratio is a constant.
    ratio = 1.0 if own is None else own / settings.learning_rate
    ratios = {path: ratio if path.startswith(("projector/", "compression/")) else 1.0 for path in params}
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.b1, settings.b2, settings.eps),
        optax.add_decayed_weights(settings.weight_decay, mask=decays),
        optax.stateless(lambda changes, _: {path: ratios[path] * change for path, change in changes.items()}),
        optax.scale_by_learning_rate(schedule(settings.learning_rate, total_steps, settings.warmup_ratio)),
    )


def _is_matrix(path: str) -> bool:
    """Stacked norms and biases have two axes as well: the name decides."""
    return path.rsplit("/", 1)[-1] in ("kernel", "lora_a", "lora_b", "head")


def in_float32(tree: Params) -> Params:
    return {path: leaf.astype(jnp.float32) for path, leaf in tree.items()}


def update(
    optimizer: optax.GradientTransformation, grads: Params, state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """One step in float32, the result rounded to the type that each parameter is kept in."""
    masters = in_float32(params)
    changes, state = optimizer.update(in_float32(grads), state, masters)
    moved = optax.apply_updates(masters, changes)
    return {path: moved[path].astype(params[path].dtype) for path in params}, state
