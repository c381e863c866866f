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
        offered = leaves & (stream.origin <= flow.prompt_end[:, None])
        order = jnp.argsort(jnp.where(offered, -flow.scores[-1], jnp.inf), axis=1, stable=True)
        recycled = _recycled(offered.sum(axis=1))
        means, is_centre = density_peaks(take(stream.x, order[:, :most]), recycled, _groups(recycled))
        rank = jnp.argsort(order, axis=1)  # back from the order of scores to that of the stream
        within = jnp.minimum(rank, most - 1)
        returns = take(is_centre, within) & (rank < most)
        x = jnp.where(returns[..., None], take(means, within), stream.x)
        flow = replace(flow, stream=replace(stream, x=x))
        return without(flow, leaves & ~returns, size.stream, self.positions), None


def _recycled(leaving: Any) -> Any:
    """How many of those that leave are recycled."""
    return (leaving * 3 // 10 + 1) * (leaving > 0)


def _groups(recycled: Any) -> Any:
    return (recycled // 10 + 1) * (recycled > 0)


def density_peaks(x: jax.Array, count: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first `count`, int [B], of x [B, M, D] in so many groups, int [B] -> the mean of each one's group [B, M, D],
    where it is the centre, bool [B, M]. All others join the nearest centre."""
    number, states = jnp.arange(x.shape[1])[None], x.astype(jnp.float32)
    present = number < count[:, None]
    distance = jnp.where(present[..., None] & present[:, None], _distances(states), jnp.inf)
    is_centre = present & (_centrality_rank(distance, groups) < groups[:, None])
    nearest = jnp.where(is_centre[:, None], distance, jnp.inf).argmin(axis=2)
    centre = jnp.where(is_centre, number, nearest)
    joins = (present[..., None] & (centre[..., None] == number[None])).astype(jnp.float32)  # [B, M, its centre]
    means = jnp.einsum("BMC,BMD->BCD", joins, states, precision="highest")
    return (means / jnp.maximum(joins.sum(axis=1), 1)[..., None]).astype(x.dtype), is_centre


def _distances(x: jax.Array) -> jax.Array:
    """float32 [B, M, D] -> [B, M, M], over the root of D. Point by point: matrix products would round, and the distance
    to itself must be none, that between two the same from both."""
    distance = jax.lax.map(lambda point: jnp.linalg.norm(x - point[:, None], axis=2), x.swapaxes(0, 1))
    return distance.swapaxes(0, 1) * x.shape[2] ** -0.5


def _centrality_rank(distance: jax.Array, groups: jax.Array) -> jax.Array:
    """distance [B, M, M], inf where there is no point -> int [B, M], 0 for the point that is most of a centre: dense,
    and far from whatever is denser. Density is exp(-mean squared distance to the `groups` nearest, itself among them).
    """
    number = jnp.arange(distance.shape[1])[None]
    nearest = jnp.where((number < groups[:, None])[:, None], jnp.sort(distance, axis=2), 0)
    density = jnp.exp(-jnp.square(nearest).sum(axis=2) / jnp.maximum(groups, 1)[:, None])
    one, other = density[..., None], density[:, None]
    denser = (other > one) | ((other == one) & (number < number.T)[None])
    farthest = jnp.where(jnp.isfinite(distance), distance, 0).max(axis=(1, 2))
    apart = jnp.where(denser, distance, farthest[:, None, None]).min(axis=2)
    is_point = jnp.isfinite(distance[:, 0])
    order = jnp.argsort(jnp.where(is_point, -apart * density, jnp.inf), axis=1, stable=True)
    return jnp.argsort(order, axis=1)
