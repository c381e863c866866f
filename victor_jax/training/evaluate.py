"""The loss on rows that were held out."""

import jax
import numpy as np

from victor_jax.data.batches import BatchSource
from victor_jax.training.optimizer import Params
from victor_jax.training.setup import Run, on_mesh, sizes_of
from victor_jax.training.step import State


def held_out_loss(run: Run, state: State, frozen: Params, source: BatchSource) -> float:
    """Mean over all supervised positions of one pass; sums cross hosts, never means."""
    total, count = 0.0, 0
    for step in range(source.schedule.steps_per_epoch):
        layout, _ = source.schedule.at(step)
        for part, sizes in zip(source[step].parts, sizes_of(run, layout.parts), strict=True):
            sums, counts = jax.device_get(run.evaluate(state.train, frozen, on_mesh(part, run.mesh), sizes=sizes))
            total, count = total + float(np.sum(sums)), count + int(np.sum(counts))
    return total / max(count, 1)
