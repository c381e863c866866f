"""How what chooses a plan for each row is trained.

Every plan is tried on known answers. A small network then learns, from the states where rows part, which plan was the
cheapest that did as well as the largest."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from victor_jax.analysis.traced import prefill_flops
from victor_jax.compression.choice import Outcome, question_features
from victor_jax.compression.plan import Branch, Fork, Kind, Method, Size
from victor_jax.compression.stream import survivors, take
from victor_jax.data.batches import build_batch
from victor_jax.data.shapes import Shape
from victor_jax.inference.buckets import room_for
from victor_jax.inference.vlm import VLM
from victor_jax.models.sequence import Batch, EncodedRow
from victor_jax.models.vlm import VLMModule, exact_where_asked
from victor_jax.ops.losses import IGNORE
from victor_jax.sharding.mesh import fetch

BATCH = 128  # rows of a step


class Tried(NamedTuple):
    """What was found about some rows."""

    log_probability: np.ndarray  # float32 [rows, plans]: of the answer
    agreeing: np.ndarray  # int32 [rows, plans]: words of it that are the likeliest in the largest plan too
    length: np.ndarray  # int32 [rows]: of the answer
    features: np.ndarray  # float32 [rows, forks, 2 D]


def try_plans(vlm: VLM, batch: Batch, shape: Shape) -> Tried:
    """Every plan that the method may choose, on a batch whose answers are supervised."""
    rows = len(batch.targets)
    most = int((batch.targets != IGNORE).sum(axis=1).max())
    most = 1 << (most - 1).bit_length()  # so that answers of all lengths share a handful of programs
    found = []
    for end in fork_of(vlm.method).ends:
        one = replace(vlm, module=vlm.module.under(end.plan))
        arrays = one.call(_outcome, batch, one.sizes(shape), most=most)
        found.append([fetch(array)[:rows] for array in arrays])
    scores, words = zip(*found, strict=True)
    is_answer = batch.targets != IGNORE
    agreeing = np.stack([((one == words[-1]) & is_answer).sum(axis=1) for one in words], axis=1)
    seen = fetch(vlm.call(features, batch, vlm.sizes(shape)))[:rows]
    return Tried(np.stack(scores, axis=1), agreeing.astype(np.int32), is_answer.sum(axis=1, dtype=np.int32), seen)


@functools.partial(jax.jit, static_argnames=("module", "sizes", "most"))
def _outcome(
    params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], most: int
) -> tuple[jax.Array, jax.Array]:
    """float32 [B]: the answer's log-probability; int32 [B, T of the input]: the likeliest word where a word is
    supervised, else -1. A row that loses a word of its answer with a position that leaves has none."""

    @exact_where_asked
    def run(model: VLMModule) -> tuple[jax.Array, jax.Array]:
        top = model.run(batch, sizes)[0].stream
        targets = jnp.where(top.kinds == Kind.PADDING, IGNORE, take(batch.targets, top.origin))
        order = survivors(targets != IGNORE, min(most, targets.shape[1]))
        targets, origin = take(targets, order), take(top.origin, order)
        logits = model.language.logits(take(top.x, order))
        is_answer = targets != IGNORE
        of_word = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=2)[..., 0]
        score = jnp.where(is_answer, of_word, 0).sum(axis=1)
        is_whole = is_answer.sum(axis=1) == (batch.targets != IGNORE).sum(axis=1)
        words = jnp.full(batch.targets.shape, -1, jnp.int32)
        rows = jnp.arange(len(words))[:, None]
        words = words.at[rows, jnp.where(is_answer, origin, words.shape[1])].set(logits.argmax(axis=2), mode="drop")
        return jnp.where(is_whole, score, -jnp.inf), words

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames=("module", "sizes"))
def features(params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...]) -> jax.Array:
    """float32 [B, forks, 2 D]: what there is to look at, along the method's own plan."""

    @exact_where_asked
    def run(model: VLMModule) -> jax.Array:
        flow, start, found = model.bottom(batch), 0, []
        for fork in fork_of(module.method).forks:
            flow, _ = model.part(flow, sizes, None, (start, fork.at))
            found.append(question_features(flow))
            start = fork.at
        return jnp.stack(found, axis=1)

    return module.apply({"params": params}, method=run)  # type: ignore[return-value]


def fork_of(method: Method) -> Fork:
    """The first one."""
    assert method.fork is not None, f"{method.spec} chooses nothing"
    return method.fork


def kept(method: Method, tried: Tried) -> np.ndarray:
    """bool [rows, plans]: which plans do as well as the method's own; that one always does."""
    assert method.keeps is not None
    of_plans = zip(tried.log_probability.T, tried.agreeing.T, strict=True)
    outcomes = [Outcome(score, tried.length, agreeing) for score, agreeing in of_plans]
    return np.stack([method.keeps(one, outcomes[-1]) for one in outcomes[:-1]] + [tried.length > 0], axis=1)


def right_branches(method: Method, does: np.ndarray) -> np.ndarray:
    """does bool [rows, plans] -> int32 [rows, forks]: the first branch with a plan that does as well."""
    fork = fork_of(method)

    def of(branch: Fork | Branch) -> np.ndarray:
        columns = [fork.ends.index(end) for end in (branch.ends if isinstance(branch, Fork) else (branch,))]
        return np.asarray(does[:, columns].any(axis=1))

    right = [np.stack([of(branch) for branch in one.branches], axis=1).argmax(axis=1) for one in fork.forks]
    return np.stack(right, axis=1).astype(np.int32)


def chosen_plans(method: Method, choices: np.ndarray) -> np.ndarray:
    """choices int [rows, forks], the branch at every fork -> int [rows]: the plan that each row ends with."""
    forks, ends = fork_of(method).forks, fork_of(method).ends

    def follow(row: np.ndarray, fork: Fork) -> int:
        branch = fork.branches[row[forks.index(fork)]]
        return follow(row, branch) if isinstance(branch, Fork) else ends.index(branch)

    return np.array([follow(row, forks[0]) for row in choices], int)


def train(
    vlm: VLM, names: set[str], features: np.ndarray, right: np.ndarray, steps: int, rate: float, seed: int
) -> dict[str, jax.Array]:
    """The parameters of these names after so many steps of Adam on the cross-entropy; `right` int32 [rows, forks]."""
    module, fixed = vlm.module, {path: leaf for path, leaf in vlm.params.items() if path not in names}
    optimizer = optax.adam(rate)
    rows = min(BATCH, len(features))

    def loss(own: dict[str, jax.Array], seen: jax.Array, wanted: jax.Array) -> jax.Array:
        found = _choices(module, {**fixed, **own}, seen)
        return sum(
            optax.softmax_cross_entropy_with_integer_labels(logits, wanted[:, i]).mean()
            for i, logits in enumerate(found)
        )

    @jax.jit
    def run(own: dict[str, jax.Array], features: jax.Array, right: jax.Array) -> dict[str, jax.Array]:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            own, state = carry
            some = jax.random.choice(key, len(features), (rows,), replace=False)
            updates, state = optimizer.update(jax.grad(loss)(own, features[some], right[some]), state)
            return (optax.apply_updates(own, updates), state), None

        (own, _), _ = jax.lax.scan(step, (own, optimizer.init(own)), jax.random.split(jax.random.key(seed), steps))
        return own

    start = {path: vlm.params[path].astype(jnp.float32) for path in names}
    return run(start, jnp.asarray(features), jnp.asarray(right))


def choose(vlm: VLM, features: np.ndarray) -> np.ndarray:
    """features float32 [rows, forks, 2 D] -> int [rows, forks]."""
    found = jax.jit(functools.partial(_choices, vlm.module))(vlm.params, features)
    return np.stack([fetch(logits).argmax(axis=1) for logits in found], axis=1)


def _choices(module: VLMModule, params: dict[str, Any], features: jax.Array) -> list[jax.Array]:
    """Of each fork float32 [rows, branches]."""

    @exact_where_asked
    def run(model: VLMModule) -> list[jax.Array]:
        forks = fork_of(module.method).forks
        return [model.compression.steps.choose(features[:, i], fork.layers) for i, fork in enumerate(forks)]

    return module.apply({"params": unflatten_dict(params, sep="/")}, method=run)  # type: ignore[return-value]


def relative_flops(vlm: VLM, row: EncodedRow) -> dict[str, float]:
    """What every plan computes to the first token after this prompt, by the written compression of the plan, as a share
    of the dearest. All matrix products, those of the method's own steps among them; what chooses is left out."""
    shape, size = room_for([row]), vlm.config.vision.image_size
    pixels = np.zeros((shape.images, 3, size, size), np.uint8) if shape.images else None
    batch, counts = build_batch([row], [pixels], vlm.method.registers, size, shape), shape.counts(vlm.method.registers)
    found = {
        end.spec: prefill_flops(vlm.module.under(end.plan), vlm.params, batch, end.plan.sizes(counts))
        for end in fork_of(vlm.method).ends
    }
    return {spec: count / max(found.values()) for spec, count in found.items()}
