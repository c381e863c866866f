"""Recycling of SparseVLM (its v1.5, see `sparsevlm.py`): of the positions that leave, the best are grouped by density
peaks and the mean of each group stays.

A mean stands where the centre of its group stood, under the centre's RoPE position, so images keep their order. The
authors put all means behind the tokens that stay and count anew. Of equal densities that of the better rated is taken
to be higher; theirs get some noise.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from victor_jax.compression.plan import Counts, Size
from victor_jax.compression.steps import Leave, without
from victor_jax.compression.stream import Flow, take


@dataclass(frozen=True)
class Recycle(Leave):
    """As Leave; and of those that leave the best are grouped, and the mean of each group stays at its centre's place.

    Images of later turns are not recycled: the mean would show them to earlier words.
    """

    def after(self, stream: Counts, parked: Counts) -> tuple[Counts, Counts]:
        above, parked = super().after(stream, parked)
        above[:, self.kind] += _groups(_recycled(stream[:, self.kind] - above[:, self.kind]))
        return above, parked

    def apply(self, flow: Flow, size: Size, own: Any) -> tuple[Flow, None]:
        stream, candidates = flow.stream, flow.stream.kinds == self.kind
        most = _recycled(max(candidates.shape[1] - self.keep, 0))
        if not most:  # nothing leaves
            return super().apply(flow, size, own)
        assert flow.scores is not None, "a Recycle follows Layers with a score"
        leaves = candidates & ~self.best(flow, candidates)
        waste = leaves & (stream.origin <= flow.prompt_end[:, None])
        order = jnp.argsort(jnp.where(waste, -flow.scores[-1], jnp.inf), axis=1, stable=True)
        recycled = _recycled(waste.sum(axis=1))
        means, is_centre = density_peaks(take(stream.x, order[:, :most]), recycled, _groups(recycled))
        rank = jnp.argsort(order, axis=1)
        within = jnp.minimum(rank, most - 1)
        returns = take(is_centre, within) & (rank < most)
        x = jnp.where(returns[..., None], take(means, within), stream.x)
        stays = without(replace(stream, x=x), leaves & ~returns, size.stream, self.positions)
        return replace(flow, stream=stays, scores=None), None


def _recycled(leaving: Any) -> Any:
    """How many of those that leave are recycled."""
    return (leaving * 3 // 10 + 1) * (leaving > 0)


def _groups(recycled: Any) -> Any:
    return (recycled // 10 + 1) * (recycled > 0)


def density_peaks(x: jax.Array, count: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first `count`, int [B], of x [B, M, D] in so many groups, int [B] -> the mean of each one's group [B, M, D],
    where it is the centre, bool [B, M].

    A centre is dense, and far from whatever is denser: density is exp(-mean squared distance to the `groups` nearest,
    itself among them). The others join the nearest centre.
    """
    most, states = x.shape[1], x.astype(jnp.float32)
    number = jnp.arange(most)[None]
    present = number < count[:, None]
    # One by one, since products of states would round: to none at all, and alike from both ends, it must be exact.
    distance = jax.lax.map(lambda one: jnp.linalg.norm(states - one[:, None], axis=2), states.swapaxes(0, 1))
    distance = distance.swapaxes(0, 1) * x.shape[2] ** -0.5  # [B, M, M]
    distance = jnp.where(present[:, None] & present[..., None], distance, jnp.inf)
    nearest = jnp.where((number < groups[:, None])[:, None], jnp.sort(distance, axis=2), 0)
    density = jnp.exp(-jnp.square(nearest).sum(axis=2) / jnp.maximum(groups, 1)[:, None])
    one, other = density[..., None], density[:, None]
    denser = (other > one) | ((other == one) & (number < number.T)[None])
    farthest = jnp.where(jnp.isfinite(distance), distance, 0).max(axis=(1, 2))
    apart = jnp.where(denser, distance, farthest[:, None, None]).min(axis=2)
    order = jnp.argsort(jnp.where(present, -apart * density, jnp.inf), axis=1, stable=True)
    is_centre = present & (jnp.argsort(order, axis=1) < groups[:, None])
    centre = jnp.where(is_centre, number, jnp.where(is_centre[:, None], distance, jnp.inf).argmin(axis=2))
    joins = (centre[..., None] == number[None]) & present[..., None]  # [B, M, M]: one joins another
    means = jnp.einsum("BMG,BMD->BGD", joins.astype(jnp.float32), states, precision="highest")
    return (means / jnp.maximum(joins.sum(axis=1), 1)[..., None]).astype(x.dtype), is_centre
