"""What a step works on, as far as the host knows when it is dispatched."""

import jax
import numpy as np

from victor_jax.compression.plan import Kind
from victor_jax.data.shapes import Layout
from victor_jax.models.sequence import Batch
from victor_jax.training.setup import Run


class Usage:
    def __init__(self, run: Run) -> None:
        self._run = run

    def of_step(self, parts: tuple[Batch, ...], layout: Layout, times: dict[str, float]) -> dict[str, float]:
        """`times` are those of the clock since the step before."""
        here = sum(int((np.asarray(part.sequence.kinds) != Kind.PADDING).sum()) for part in parts)
        return {"data_wait": times.get("data", 0.0), "tokens": here * jax.process_count()}
