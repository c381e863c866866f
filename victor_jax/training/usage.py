"""What a step works on, as far as the host knows when it is dispatched."""

import numpy as np

from victor_jax.data.index import Index
from victor_jax.data.schedule import FILLER
from victor_jax.data.shapes import Layout
from victor_jax.training.setup import Run


class Usage:
    def __init__(self, run: Run, index: Index) -> None:
        self._index = index
        self._per_image = run.module.config.tokens_per_image + run.module.compression.registers

    def of_step(self, rows: np.ndarray, layout: Layout, times: dict[str, float]) -> dict[str, float]:
        """`rows` are those of the whole batch, `times` those of the clock since the step before."""
        rows = rows[rows != FILLER]
        tokens = self._index.text_lengths[rows].sum() + self._index.image_counts[rows].sum() * self._per_image
        return {"data_wait": times.get("data", 0.0), "tokens": int(tokens)}
