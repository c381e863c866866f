"""What a step works on, as far as the host knows when it is dispatched."""

import functools

import jax
import numpy as np

from victor_jax.analysis import flops
from victor_jax.analysis.topology import peak_flops
from victor_jax.data.index import Index
from victor_jax.data.schedule import FILLER
from victor_jax.data.shapes import Layout, Shape
from victor_jax.training.setup import Run, sizes_of


class Usage:
    def __init__(self, run: Run, index: Index) -> None:
        self._index, self._run = index, run

    def of_step(self, rows: np.ndarray, layout: Layout, times: dict[str, float]) -> dict[str, float]:
        """`rows` are those of the whole batch, `times` those of the clock since the step before."""
        rows = rows[rows != FILLER]
        index, registers = self._index, self._run.module.method.registers
        tokens = (index.text_lengths[rows] + index.visual_lengths[rows] + index.image_counts[rows] * registers).sum()
        return {"data_wait": times.get("data", 0.0), "tokens": int(tokens), "flops": self.flops(layout)}

    @functools.cache  # noqa: B019 - one object per run, a few layouts
    def flops(self, layout: Layout) -> int:
        """Of the model, as the plan counts them: attention in full, without what the backward pass computes again."""
        return sum(cost.model_flops for cost in step_costs(self._run, layout.parts))


def step_costs(run: Run, parts: tuple[Shape, ...]) -> list[flops.StepCost]:
    """FLOPs and bytes of each part of a batch, all devices together."""
    settings, module = run.settings, run.module
    rows = settings.batch_size // len(parts)
    training = flops.Training(settings.trainable, module.remat, settings.lora.rank)
    lengths = map(module.method.plan.stage_lengths, sizes_of(run, parts))
    works = [
        flops.Work.of_loss(rows, of_part, rows * part.images, settings.loss_chunk)
        for part, of_part in zip(parts, lengths, strict=True)
    ]
    return [flops.training_step(module, work, training) for work in works]


def share_of_peak(flops_per_second: float) -> dict[str, float]:
    """Of all devices together (MFU); nothing where the device's peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return {} if peak is None else {"share_of_peak": flops_per_second / (peak * jax.device_count())}
