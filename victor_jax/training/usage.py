"""What a step works on, as far as the host knows when it is dispatched."""

import functools

import jax
import numpy as np

from victor_jax.analysis import flops
from victor_jax.data.index import Index
from victor_jax.data.schedule import FILLER
from victor_jax.data.shapes import Layout
from victor_jax.training.setup import Run, sizes_of

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets, by the beginning of its kind's name.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


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
        settings, module = self._run.settings, self._run.module
        rows = settings.batch_size // len(layout.parts)
        training = flops.Training(
            settings.trainable,
            settings.remat,  # type: ignore[arg-type]  # checked where settings are read
            settings.lora.rank,
        )
        return sum(
            flops.training_step(
                module,
                flops.Work.of_loss(
                    rows, module.method.plan.stage_lengths(sizes), rows * part.images, settings.loss_chunk
                ),
                training,
            ).model_flops
            for part, sizes in zip(layout.parts, sizes_of(self._run, layout.parts), strict=True)
        )


def share_of_peak(flops_per_second: float) -> dict[str, float]:
    """Of all devices together (MFU); nothing where the device's peak is not known."""
    kind = jax.devices()[0].device_kind
    peak = next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if kind.startswith(name)), None)
    return {} if peak is None else {"share_of_peak": flops_per_second / (peak * jax.device_count())}
