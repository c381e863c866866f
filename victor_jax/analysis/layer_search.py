"""Where the visual tokens can leave: the layer search of visual tokens withdrawal (Lin et al., arXiv 2405.05803).

The score of a layer is KL(withdrawn || full) of the logits after a prompt: of the tower whose visual tokens leave at
that layer, from the tower that keeps them. That is the direction of the authors' code; it is often quoted the other
way around.

One walk up the tower serves all layers. Below its cut a withdrawn tower is the full one; so at each layer what is left
of the full stream begins the tower that is cut there, and runs on beside those that were cut below, on their short
sequence. The authors' code runs all layers once more for each candidate.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from victor_jax.compression.plan import Kind, Layers, Method, Size
from victor_jax.compression.steps import Leave
from victor_jax.compression.stream import Stream
from victor_jax.errors import UserError
from victor_jax.inference.platform import COMPILER_OPTIONS
from victor_jax.inference.vlm import VLM
from victor_jax.models.language import RunLayer
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule, exact_where_asked
from victor_jax.sharding.mesh import fetch


def cut_of(method: Method) -> int:
    """Where in its plan the visual tokens leave, all at once and for good; nothing else may happen there."""
    steps = method.plan.steps
    cuts = [
        number
        for number, step in enumerate(steps)
        if isinstance(step, Leave) and step == Leave(Kind.VISUAL, positions=step.positions)
    ]
    plain = [step for step in steps if isinstance(step, Layers) and step == Layers(step.count)]
    if len(cuts) == 1 and len(plain) == len(steps) - 1:
        return cuts[0]
    raise UserError(
        f"{method.spec} cannot be searched: a cut can be moved only where it takes all visual tokens and nothing else "
        "happens"
    )


def divergences(vlm: VLM, method: Method, candidates: range, batch: Batch, sizes: tuple[Size, ...]) -> np.ndarray:
    """float32 [B, candidates]: KL(withdrawn || full) after each prompt, of the cut at each of these layers.

    `vlm` runs the plan without the cut, `method` is that with it (at any layer), to whose plan the sizes belong.
    """
    at = cut_of(method)
    found = vlm.call(_divergences, batch, sizes[at : at + 1], cut=method.plan.steps[at], candidates=candidates)
    return fetch(found)[: len(batch.targets)]


@functools.partial(jax.jit, static_argnames=("module", "sizes", "cut", "candidates"), compiler_options=COMPILER_OPTIONS)
def _divergences(
    params: dict, batch: Batch, *, module: VLMModule, sizes: tuple[Size, ...], cut: Leave, candidates: range
) -> jax.Array:
    return module.apply({"params": params}, batch, sizes[0], cut, candidates, method=_walk)  # type: ignore[return-value]


@exact_where_asked
def _walk(model: VLMModule, batch: Batch, size: Size, cut: Leave, candidates: range) -> jax.Array:
    flow, tower, layers = model.bottom(batch), model.language, jnp.array(candidates)
    full = flow.stream

    def withdrawn(x: jax.Array) -> Stream:
        """x [B, T, D] of the full stream."""
        return cut.apply(replace(flow, stream=replace(full, x=x)), size, None)[0].stream

    short = withdrawn(full.x)
    view, short_view = (tower.view(stream, span=full.kinds.shape[1]) for stream in (full, short))

    def visit(state: tuple, number: jax.Array, run: RunLayer) -> tuple:
        x, towers = state
        towers = jnp.where((layers == number)[:, None, None, None], withdrawn(x).x[None], towers)
        # One by one, since the number of those that have begun grows with the layers.
        begun = (layers <= number).sum()
        towers = jax.lax.fori_loop(0, begun, lambda i, held: held.at[i].set(run(held[i], short_view)), towers)
        return run(x, view), towers

    towers = jnp.zeros((len(candidates), *short.x.shape), short.x.dtype)  # [candidates, B, T of the short, D]
    x, towers = tower.walk((full.x, towers), visit)

    def log_probabilities(x: jax.Array, kinds: jax.Array) -> jax.Array:
        """x [N, B, T, D] of N towers -> float32 [N, B, W], of the token after each prompt."""
        last = (kinds != Kind.PADDING).sum(axis=1) - 1
        ends = jnp.take_along_axis(x, last[None, :, None, None], axis=2)[:, :, 0]
        return jax.nn.log_softmax(tower.logits(tower.norm(ends)))

    p, q = log_probabilities(x[None], full.kinds), log_probabilities(towers, short.kinds)
    return (jnp.exp(q) * (q - p)).sum(axis=-1).T
