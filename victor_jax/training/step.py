"""One training step: loss on supervised positions, gradients of the trainable tree only, AdamW."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.images import normalise
from victor_jax.training.optimizer import Params, update
from victor_jax.weights.names import nest

AVERAGE_DECAY = 0.9  # of the running loss that a spike is measured against


@flax.struct.dataclass
class State:
    """What a step changes."""

    train: Params
    optimizer: optax.OptState
    loss_average: jax.Array  # float32: of recent good steps, 0 before the first


@dataclass(frozen=True)
class StepSettings:
    micro_batches: int  # the batch passes in this many parts, their gradients added up
    loss_chunk: int  # positions whose logits live at a time
    spike_factor: float  # a loss above this many times the recent average is a bad step; 0: never
    seed: int  # of dropout


def make_step(
    module: VLMModule, optimizer: optax.GradientTransformation, rate: Callable, settings: StepSettings
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """step(state, frozen, batch, number, lengths=…) -> the next state and its metrics; to be compiled.

    A bad step (a loss or a gradient that is not finite, or a spike) leaves the state as it was and says so in
    `bad`: nothing broken ever reaches the parameters.
    """

    def step(
        state: State, frozen: Params, batch: Batch, number: jax.Array, *, lengths: tuple[int, ...]
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        grads, row_loss, row_count = gradients(module, state.train, frozen, batch, key, lengths, settings)
        count = jnp.maximum(row_count.sum(), 1)
        grads = {path: grad / count.astype(grad.dtype) for path, grad in grads.items()}
        loss, norm = row_loss.sum() / count, optax.tree.norm(grads)
        average = state.loss_average
        spike = (settings.spike_factor > 0) & (average > 0) & (loss > settings.spike_factor * average)
        bad = ~jnp.isfinite(loss) | ~jnp.isfinite(norm) | spike
        train, moments = update(optimizer, grads, state.optimizer, state.train)
        recent = jnp.where(average > 0, AVERAGE_DECAY * average + (1 - AVERAGE_DECAY) * loss, loss)
        after = State(train, moments, recent)
        after = jax.tree.map(lambda old, new: jnp.where(bad, old, new), state, after)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate(number),
            "supervised": row_count.sum(),
            "bad": bad,
            "row_loss": row_loss / jnp.maximum(row_count, 1),  # [B], to name the rows of a bad step
        }
        return after, metrics

    return step


def gradients(
    module: VLMModule,
    train: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array,
    lengths: tuple[int, ...],
    settings: StepSettings,
) -> tuple[Params, jax.Array, jax.Array]:
    """Gradients of the summed loss, float32 [B] summed loss and int32 [B] supervised positions of each row."""

    def of(part: Batch, part_key: jax.Array) -> tuple[Params, jax.Array, jax.Array]:
        def summed(train: Params) -> tuple[jax.Array, Any]:
            loss, count = row_losses(module, frozen | train, part, part_key, lengths, settings.loss_chunk)
            return loss.sum(), (loss, count)

        grads, (loss, count) = jax.grad(summed, has_aux=True)(train)
        return grads, loss, count

    parts = settings.micro_batches
    if parts == 1:
        return of(batch, key)
    # Part i takes rows i, i + parts, …: every device keeps the rows it has.
    split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Params, part: tuple[Batch, jax.Array]) -> tuple[Params, Any]:
        grads, loss, count = of(part[0], jax.random.fold_in(key, part[1]))
        return {path: total[path] + grads[path].astype(jnp.float32) for path in total}, (loss, count)

    zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in train.items()}
    total, (loss, count) = jax.lax.scan(add, zeros, (split, jnp.arange(parts)))
    return total, loss.swapaxes(0, 1).reshape(-1), count.swapaxes(0, 1).reshape(-1)


def row_losses(
    module: VLMModule, params: Params, batch: Batch, key: jax.Array | None, lengths: tuple[int, ...], chunk: int
) -> tuple[jax.Array, jax.Array]:
    """float32 [B] summed loss and int32 [B] supervised positions; a key turns dropout on."""
    pixels = None if batch.pixels is None else normalise(batch.pixels.reshape(-1, *batch.pixels.shape[2:]))
    return module.apply(  # type: ignore[return-value]
        {"params": nest(params)},
        batch.sequence,
        pixels,
        batch.targets,
        lengths,
        chunk,
        method=VLMModule.loss,
        rngs=None if key is None else {"dropout": key},
    )
