"""Instruments of a run: what each step did, known one step late, and where it is written; time, traces, memory."""

import functools
import importlib
import importlib.util
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from victor_jax.analysis.topology import peak_flops
from victor_jax.data.batches import Step
from victor_jax.data.schedule import FILLER, Index
from victor_jax.errors import UserError
from victor_jax.sharding.mesh import row_shares
from victor_jax.training.setup import Run, part_cost

PLAIN_SECONDS = 10.0  # between two lines, where the output is no terminal


class Metrics(AbstractContextManager):
    """The first host writes, the others do nothing. Steps count from 0; a run resumes at `resume_step`."""

    def __init__(
        self,
        workdir: Path,
        total_steps: int,
        is_first_host: bool,
        resume_step: int = 0,
        wandb: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        """`config` is what Weights & Biases shows of the run; the project is WANDB_PROJECT or ours."""
        if wandb and not importlib.util.find_spec("wandb"):
            raise UserError("config.wandb is on, but wandb is not installed: pip install wandb, or turn it off")
        self._open, self._write = ExitStack(), list[Callable[[int, dict[str, Any]], Any]]()
        if not is_first_host:
            return
        path = workdir / "metrics.jsonl"
        try:
            if path.exists():
                _cut(path, resume_step)
            file = self._open.enter_context(path.open("a", encoding="utf-8", buffering=1))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): give another --workdir") from None
        self._write.append(lambda step, values: file.write(json.dumps({"step": step} | values, allow_nan=False) + "\n"))
        if importlib.util.find_spec("tensorboardX"):
            module = importlib.import_module("tensorboardX")
            writer = module.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step)
            self._open.callback(writer.close)
            self._write.append(lambda step, values: [writer.add_scalar(*item, step) for item in _numbers(values)])
        if wandb:
            run = _wandb_run(workdir, config)
            self._open.callback(run.finish)
            self._write.append(lambda step, values: run.log(dict(_numbers(values)), step=step))
        if sys.stderr.isatty():
            bar = tqdm(total=total_steps, initial=resume_step, unit="step", dynamic_ncols=True)
            self._write.append(functools.partial(_advance, self._open.enter_context(bar)))
        else:
            self._write.append(_Lines(total_steps))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Values become plain numbers; what is not finite is written as null."""
        plain = {name: _plain(value) for name, value in values.items()}
        for write in self._write:
            write(step, plain)

    def say(self, text: str) -> None:
        """A line that leaves the progress bar whole."""
        if self._write:
            tqdm.write(text, file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _advance(bar: tqdm, step: int, values: dict[str, Any]) -> None:
    bar.set_postfix_str(", ".join(_said(values)), refresh=False)
    bar.update(step + 1 - bar.n)


class _Lines:
    """Progress where the output is no terminal: a line now and then, with the time left."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._first: tuple[int, float] | None = None  # the ETA counts from the first step's end: that one compiled
        self._shown = -math.inf

    def __call__(self, step: int, values: dict[str, Any]) -> None:
        now, done = time.monotonic(), step + 1
        if self._first is None:
            self._first = done, now
        if now - self._shown < PLAIN_SECONDS and done < self._total:
            return
        self._shown = now
        said = [f"step {done}/{self._total}", *_said(values)]
        if self._first[0] < done < self._total:
            left = (now - self._first[1]) / (done - self._first[0]) * (self._total - done)
            said.append(f"ETA {timedelta(seconds=round(left))}")
        print(", ".join(said), file=sys.stderr, flush=True)


def _cut(path: Path, resume_step: int) -> None:
    """Drops the lines that the run is going to write again, and what a kill left of a line; at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with path.open(encoding="utf-8") as lines, partial.open("w", encoding="utf-8") as kept:
            kept.writelines(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < resume_step)
        os.replace(partial, path)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: move it away, and the run goes on with a new one") from None
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in values.items() if value is not None]


def _said(values: dict[str, Any]) -> list[str]:
    written = {"loss": "loss {:.4f}", "tokens_per_second": "{:,.0f} tokens/s"}
    return [written[name].format(value) for name, value in _numbers(values) if name in written]


def _wandb_run(workdir: Path, config: dict[str, Any] | None) -> Any:
    """The run of this work folder: a resumed one goes on in the same."""
    wandb = importlib.import_module("wandb")
    name = workdir / "wandb_run.txt"
    if not name.exists():
        name.write_text(secrets.token_hex(4), encoding="utf-8")
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "victor_jax"),
        name=workdir.name,
        id=name.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(workdir),
        config=config,
    )


# --- of each step ---------------------------------------------------------------------------------------------------


class StepMonitor:
    """Logs each step when the next one is dispatched, so that fetching never delays a dispatch; stops the run, or
    counts, where a step was bad."""

    def __init__(self, run: Run, index: Index, metrics: Metrics, total_steps: int) -> None:
        self._run, self._index, self._metrics, self._last = run, index, metrics, total_steps - 1
        self._cost = functools.cache(functools.partial(part_cost, run))
        self._peak = peak_flops(jax.devices()[0].device_kind)
        self._skipped, self._before = 0, time.perf_counter()
        self._held: tuple[int, dict[str, Any]] | None = None
        shares = row_shares(run.mesh, run.part_rows)
        # Row i of a part, as the devices hold it, is row order[i] of the schedule.
        self._order = np.argsort(np.concatenate([places for _, places in shares]))

    def work_of(self, batch: Step, number: int) -> dict[str, Any]:
        """What the host knows of the step: positions that are no padding, FLOPs of the model, records of the rows."""
        rows, index, registers = batch.rows[batch.rows != FILLER], self._index, self._run.module.method.registers
        tokens = (index.text_lengths[rows] + index.visual_lengths[rows] + index.image_counts[rows] * registers).sum()
        of_loss = batch.rows[:, self._order].reshape(-1)
        return {
            "tokens": int(tokens),
            "flops": sum(self._cost(shape, self._run.sampled(number)).model_flops for shape in batch.shapes),
            "rows": of_loss,
        }

    def push(self, step: int, values: dict[str, Any]) -> None:
        """To be called when the step is dispatched; its values may be arrays on devices."""
        self.flush()
        self._held = step, values

    def amend(self, values: Mapping[str, Any]) -> None:
        """Adds to the step that is held back."""
        if self._held is not None:
            self._held[1].update(values)

    def flush(self) -> None:
        """Waits for the step that is held back and logs it: before its checkpoint, and at the end."""
        if self._held is not None:
            (step, values), self._held = self._held, None
            self._log(step, jax.device_get(values))

    def _log(self, step: int, values: dict[str, Any]) -> None:
        rows, row_loss = values.pop("rows"), np.concatenate(values.pop("row_loss"))
        # Steps are fetched in order, each when it is done: the time between two of them is the time of a step.
        self._before, seconds = time.perf_counter(), time.perf_counter() - self._before
        values |= {"step_time": seconds, "tokens_per_second": values["tokens"] / seconds}
        if self._peak:  # of all devices together: MFU
            values["share_of_peak"] = values["flops"] / seconds / (self._peak * jax.device_count())
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


# --- time and memory ------------------------------------------------------------------------------------------------


class Clock:
    """Seconds by name: data, step, compile, evaluation, checkpoint."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._total: dict[str, float] = {}
        self.latest: dict[str, float] = {}  # of each name, its latest measure

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.latest[name] = time.perf_counter() - start
        self._total[name] = self._total.get(name, 0.0) + self.latest[name]

    def shares(self) -> dict[str, float]:
        """Each name's share of the time since the start, largest first; `other` is what nobody measured."""
        elapsed = time.perf_counter() - self._start
        shares = {name: seconds / elapsed for name, seconds in self._total.items()}
        shares["other"] = max(0.0, 1.0 - sum(shares.values()))
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def traced(steps: range, folder: Path, first: int, count: int) -> Iterator[int]:
    """The steps; `count` of them, from `first` on, are traced into a folder for TensorBoard or Perfetto."""
    wanted = [step for step in steps if first <= step < first + count]  # a resumed run may begin among them
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python functions, which would slow the traced steps down
    with ExitStack() as trace:
        for step in steps:
            if step in wanted[:1]:
                trace.enter_context(jax.profiler.trace(folder, profiler_options=options))
            yield step
            if step in wanted[-1:]:
                jax.block_until_ready(jax.live_arrays())  # else the trace would end while the devices still work
                trace.close()


def peak_memory() -> dict[str, int]:
    """The most bytes that a device of this process ever held, where the backend knows."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return {"memory": max(known)} if known else {}
