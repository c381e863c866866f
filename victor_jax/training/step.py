"""One training step: loss on supervised positions, gradients of the trainable tree only, AdamW."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import Size
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule
from victor_jax.training.optimizer import Params, update

AVERAGE_DECAY = 0.9  # of the running loss that a spike is measured against


@flax.struct.dataclass
class State:
    """What a step changes."""

    train: Params
    optimizer: optax.OptState
    loss_average: jax.Array  # float32: of recent good steps, 0 before the first


PartSizes = tuple[tuple[Size, ...], ...]  # of each part: the static lengths of the plan


def make_step(
    module: VLMModule,
    optimizer: optax.GradientTransformation,
    loss_chunk: int,  # positions whose logits live at a time
    spike_factor: float = 0.0,  # a loss above this many times the recent average is a bad step; 0: never
    seed: int = 0,  # of dropout
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """step(state, frozen, parts, number, rate, sizes=…) -> the next state and its metrics; to be compiled.

    The batch comes in parts of equally many rows, each of one length; their gradients are added up. The loss is the
    mean over all supervised positions of the batch, whatever part they are in.

    A bad step (a loss or a gradient that is not finite, or a spike) leaves the state as it was and says so in
    `bad`: nothing broken ever reaches the parameters.
    """

    def step(
        state: State, frozen: Params, parts: tuple[Batch, ...], number: jax.Array, rate: jax.Array, *, sizes: PartSizes
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        grads, row_loss, row_count = gradients(module, state.train, frozen, parts, key, sizes, loss_chunk)
        count = jnp.maximum(row_count.sum(), 1)
        grads = {path: grad / count.astype(grad.dtype) for path, grad in grads.items()}
        loss, norm = row_loss.sum() / count, optax.tree.norm(grads)
        average = state.loss_average
        spike = (spike_factor > 0) & (average > 0) & (loss > spike_factor * average)
        bad = ~jnp.isfinite(loss) | ~jnp.isfinite(norm) | spike
        train, moments = update(optimizer, grads, state.optimizer, state.train, rate)
        recent = jnp.where(average > 0, AVERAGE_DECAY * average + (1 - AVERAGE_DECAY) * loss, loss)
        after = State(train, moments, recent)
        after = jax.tree.map(lambda old, new: jnp.where(bad, old, new), state, after)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
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
    parts: tuple[Batch, ...],
    key: jax.Array,
    sizes: PartSizes,
    chunk: int,
) -> tuple[Params, jax.Array, jax.Array]:
    """Gradients of the summed loss; float32 [B] summed loss and int32 [B] supervised positions of each row."""

    def of(part: Batch, part_key: jax.Array, part_sizes: tuple[Size, ...]) -> tuple[Params, jax.Array, jax.Array]:
        def summed(train: Params) -> tuple[jax.Array, Any]:
            loss, count = row_losses(module, frozen | train, part, part_key, part_sizes, chunk)
            return loss.sum(), (loss, count)

        grads, (loss, count) = jax.grad(summed, has_aux=True)(train)
        return grads, loss, count

    total, loss, count = of(parts[0], key, sizes[0])
    losses, counts = [loss], [count]
    for number, (part, part_sizes) in enumerate(zip(parts[1:], sizes[1:], strict=True), start=1):
        # The barrier keeps parts one after the other: side by side they would need the memory of all.
        total, part = jax.lax.optimization_barrier((total, part))
        grads, loss, count = of(part, jax.random.fold_in(key, number), part_sizes)
        total = {path: total[path].astype(jnp.float32) + grads[path].astype(jnp.float32) for path in total}
        losses.append(loss)
        counts.append(count)
    return total, jnp.concatenate(losses), jnp.concatenate(counts)


def row_losses(
    module: VLMModule, params: Params, batch: Batch, key: jax.Array | None, sizes: tuple[Size, ...], chunk: int
) -> tuple[jax.Array, jax.Array]:
    """float32 [B] summed loss and int32 [B] supervised positions; a key turns dropout on."""
    return module.apply(  # type: ignore[return-value]
        {"params": unflatten_dict(params, sep="/")},
        batch,
        sizes,
        chunk,
        method=VLMModule.loss,
        rngs=None if key is None else {"dropout": key},
    )
