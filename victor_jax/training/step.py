"""A training step in two programs: `accumulate` adds the gradients of one part of the batch to running sums, `update`
is AdamW on the sums. Parts run one after the other, so the memory of a step is that of one part."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import Plan, Size
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


@flax.struct.dataclass
class Sums:
    """What the parts of a batch add up to. Sums, not means: parts hold different numbers of supervised positions."""

    grads: Params  # float32, of the summed loss
    loss: jax.Array  # float32
    count: jax.Array  # int32: supervised positions


Accumulate = Callable[..., tuple[Sums, jax.Array]]
Update = Callable[[State, Sums, jax.Array], tuple[State, dict[str, jax.Array]]]


def zero_sums(train: Params) -> Sums:
    grads = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in train.items()}
    return Sums(grads, jnp.float32(0), jnp.int32(0))


def make_accumulate(module: VLMModule, loss_chunk: int, seed: int = 0) -> Accumulate:
    """accumulate(train, frozen, sums, part, number, which, sizes=…, plan=…) -> the sums with this part, float32 [rows]
    mean loss of each row; to be compiled, with `sums` donated.

    `number` is that of the step and `which` that of the part, for dropout; `plan` is one of those that the method
    samples, or None, and `sizes` are its static lengths; at most `loss_chunk` positions of a row have logits at a time.
    """

    def accumulate(
        train: Params,
        frozen: Params,
        sums: Sums,
        part: Batch,
        number: jax.Array,
        which: jax.Array,
        *,
        sizes: tuple[Size, ...],
        plan: Plan | None = None,
    ) -> tuple[Sums, jax.Array]:
        run = module if plan is None else module.under(plan)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), which)

        def summed(train: Params) -> tuple[jax.Array, Any]:
            loss, count = row_losses(run, frozen | train, part, key, sizes, loss_chunk)
            return loss.sum(), (loss, count)

        total, backward, (loss, count) = jax.vjp(summed, train, has_aux=True)
        grads = add_gradients(sums.grads, train, backward, jnp.ones_like(total))
        return Sums(grads, sums.loss + total, sums.count + count.sum()), loss / jnp.maximum(count, 1)

    return accumulate


def add_gradients(sums: Params, train: Params, backward: Any, seed: jax.Array) -> Params:
    """The sums with the gradients that `backward`, of jax.vjp, computes.

    A float32 gradient is added to its sum inside the backward pass, layer by layer, so that no second set of gradients
    is ever in memory. A gradient has the type of its parameter: those of narrower parameters are added afterwards.
    """
    if any(leaf.dtype != jnp.float32 for leaf in train.values()):
        (grads,) = backward(seed)
        return {path: total + grads[path].astype(jnp.float32) for path, total in sums.items()}
    refs = {path: jax.new_ref(total) for path, total in sums.items()}
    backward.with_refs(refs)(seed)
    return {path: jax.freeze(ref) for path, ref in refs.items()}


def make_update(optimizer: optax.GradientTransformation, spike_factor: float = 0.0) -> Update:
    """update(state, sums, rate) -> the next state and the metrics of the step; to be compiled, with `state` donated.

    The loss is the mean over all supervised positions of the batch, whatever part they are in. A loss above
    `spike_factor` times the recent average is a spike; 0: never. A bad step (a spike, or a loss or a gradient that is
    not finite) leaves the state as it was and sets `bad`: nothing broken ever reaches the parameters.
    """

    def advance(state: State, sums: Sums, rate: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        count = jnp.maximum(sums.count, 1)
        grads = {path: grad / count for path, grad in sums.grads.items()}
        loss, norm = sums.loss / count, optax.tree.norm(grads)
        average = state.loss_average
        spike = (spike_factor > 0) & (average > 0) & (loss > spike_factor * average)
        bad = ~jnp.isfinite(loss) | ~jnp.isfinite(norm) | spike
        train, moments = update(optimizer, grads, state.optimizer, state.train, rate)
        recent = jnp.where(average > 0, AVERAGE_DECAY * average + (1 - AVERAGE_DECAY) * loss, loss)
        after = jax.tree.map(lambda old, new: jnp.where(bad, old, new), state, State(train, moments, recent))
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "supervised": sums.count, "bad": bad}
        return after, metrics

    return advance


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
