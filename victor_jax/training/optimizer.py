"""AdamW, its arithmetic and moments in float32 whatever type the parameters have, and its learning rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from victor_jax.training.settings import OptimizerSettings

Params = dict[str, jax.Array]  # by path


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """A line from 0 over ceil(ratio * total) steps, then half a cosine to 0, as in Hugging Face's Trainer, or a
    constant."""
    warmup = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * step / warmup
    if not settings.cosine:
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def is_decayed(path: str) -> bool:
    """As Hugging Face's Trainer: all but norms and biases, so the embedding too. A method's own parameters never."""
    return not path.startswith("compression/") and not path.endswith(("/scale", "/bias"))


def make_optimizer(settings: OptimizerSettings, params: Params) -> optax.GradientTransformation:
    """All of AdamW but the learning rate, which `update` takes: no program depends on how many steps there are."""
    own = settings.projector_learning_rate
    # Both rates follow one schedule, so that their ratio is a constant.
    ratio = own / settings.learning_rate if own else 1.0
    ratios = {path: ratio if path.startswith(("projector/", "compression/")) else 1.0 for path in params}
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.b1, settings.b2, settings.eps, mu_dtype=settings.mu_dtype),
        optax.add_decayed_weights(settings.weight_decay, mask={path: is_decayed(path) for path in params}),
        optax.stateless(lambda changes, _: {path: ratios[path] * change for path, change in changes.items()}),
        optax.scale_by_schedule(lambda count: -1.0),  # its count is in the checkpoints of earlier revisions
    )


def in_float32(tree: Any) -> Any:
    """Any tree of arrays, those in bfloat16 widened."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree)


def update(
    optimizer: optax.GradientTransformation, grads: Params, state: optax.OptState, params: Params, rate: jax.Array
) -> tuple[Params, optax.OptState]:
    """One step in float32, the result rounded to the types that parameters and moments are kept in."""
    masters = in_float32(params)
    changes, state = optimizer.update(in_float32(grads), in_float32(state), masters)
    return {path: (masters[path] + rate * changes[path]).astype(leaf.dtype) for path, leaf in params.items()}, state
