"""What each step did, known one step late: its throughput, its FLOPs, and whether it was bad."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from victor_jax.analysis.topology import peak_flops
from victor_jax.data.batches import Step
from victor_jax.data.schedule import FILLER, Index
from victor_jax.errors import UserError
from victor_jax.sharding.mesh import row_shares
from victor_jax.training.metrics import Metrics
from victor_jax.training.setup import Run, step_costs


class DeferredMetrics:
    """Passes a step's values on when the next step is dispatched, so that fetching them never delays a dispatch."""

    def __init__(self, write: Callable[[int, dict[str, Any]], None]) -> None:
        self._write = write
        self._held: tuple[int, dict[str, Any]] | None = None

    def push(self, step: int, values: Mapping[str, Any]) -> None:
        """To be called when the step is dispatched; its values may be arrays on devices."""
        self.flush()
        self._held = step, dict(values)

    def amend(self, values: Mapping[str, Any]) -> None:
        """Adds to the step that is held back."""
        if self._held is not None:
            self._held[1].update(values)

    def flush(self) -> None:
        """Waits for the step that is held back and passes it on: before its checkpoint, and at the end."""
        if self._held is not None:
            (step, values), self._held = self._held, None
            self._write(step, jax.device_get(values))


class StepMonitor:
    """Receives each step's values from DeferredMetrics: logs them, and stops the run or counts where it was bad."""

    def __init__(self, run: Run, index: Index, metrics: Metrics, total_steps: int) -> None:
        self._run, self._index, self._metrics, self._last = run, index, metrics, total_steps - 1
        self._costs = functools.cache(functools.partial(step_costs, run))
        self._skipped, self._before = 0, time.perf_counter()
        shares = row_shares(run.mesh, run.settings.batch_size // run.settings.micro_batches)
        # Row i of a part, as the devices hold it, is row order[i] of the schedule.
        self._order = np.argsort(np.concatenate([places for _, places in shares]))

    def work_of(self, batch: Step) -> dict[str, Any]:
        """What the host knows of a step: positions that are no padding, FLOPs of the model, records of the rows."""
        rows, index, registers = batch.rows[batch.rows != FILLER], self._index, self._run.module.method.registers
        tokens = (index.text_lengths[rows] + index.visual_lengths[rows] + index.image_counts[rows] * registers).sum()
        of_loss = batch.rows[:, self._order].reshape(-1)
        return {
            "tokens": int(tokens),
            "flops": sum(cost.model_flops for cost in self._costs(batch.layout.parts)),
            "rows": of_loss,
        }

    def __call__(self, step: int, values: dict[str, Any]) -> None:
        rows, row_loss = values.pop("rows"), np.asarray(values.pop("row_loss"))
        # Steps are fetched in order, each when it is done: the time between two of them is the time of a step.
        self._before, seconds = time.perf_counter(), time.perf_counter() - self._before
        values |= {"step_time": seconds, "tokens_per_second": values["tokens"] / seconds}
        values |= share_of_peak(values["flops"] / seconds)
        settings = self._run.settings
        if step % settings.log_every == 0 or values["bad"] or "held_out_loss" in values or step == self._last:
            self._metrics.log(step, values)
        if not values["bad"]:
            return
        self._skipped += 1
        worst = np.argsort(-np.where(np.isfinite(row_loss), row_loss, np.inf))[:8]
        said = (
            f"step {step} is bad (loss {values['loss']}, gradient norm {values['grad_norm']}); its rows of highest "
            f"loss are {', '.join(f'{rows[at]} ({row_loss[at]:.3g})' for at in worst if rows[at] != FILLER)}"
        )
        if settings.bad_step.action == "stop" or self._skipped > settings.bad_step.most:
            raise UserError(
                f"{said}; go on without such steps by config.bad_step.action=skip, or start anew in another --workdir, "
                "with the data mended or a lower learning rate"
            )
        self._metrics.say(f"skipped: {said}")


def share_of_peak(flops_per_second: float) -> dict[str, float]:
    """Of all devices together (MFU); nothing where the device's peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return {} if peak is None else {"share_of_peak": flops_per_second / (peak * jax.device_count())}
