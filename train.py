"""Trains a model: python train.py --config=configs/finetune.py:registers=8,layer=3 --workdir=DIR [--config.key=value …]

The same command goes on where it stopped, on any number of devices, hosts and data workers.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from victor_jax.data.index import check_bad_rows
from victor_jax.data.inputs import open_inputs, with_paths
from victor_jax.data.loader import Loader
from victor_jax.data.schedule import Schedule
from victor_jax.errors import UserError, exit_status
from victor_jax.sharding import distributed
from victor_jax.training import command, memory, records
from victor_jax.training.cache import use_compile_cache
from victor_jax.training.checkpoints import Checkpoints
from victor_jax.training.clock import Clock
from victor_jax.training.evaluate import held_out_loss
from victor_jax.training.export import export
from victor_jax.training.metrics import Late, Metrics, device_memory
from victor_jax.training.optimizer import Params
from victor_jax.training.settings import Settings, read
from victor_jax.training.setup import (
    make_run,
    mesh_of,
    on_mesh,
    open_start,
    row_shares,
    sizes_of,
    start_params,
    start_state,
    start_tensors,
)
from victor_jax.training.usage import Usage, share_of_peak
from victor_jax.weights.checkpoint import Checkpoint


def main(config: ConfigDict, workdir: str | Path) -> None:
    # --- set-up -----------------------------------------------------------------------------------------------------
    workdir, clock, is_first = records.open_workdir(workdir), Clock(), jax.process_index() == 0
    settings = read(config)
    mesh = mesh_of(settings, jax.devices())
    use_compile_cache()
    records.keep_config(config.to_dict(), workdir, write=is_first)

    # --- data -------------------------------------------------------------------------------------------------------
    start = open_start(settings)
    draft = make_run(settings, start.config, mesh, total_steps=1)  # the data says how many there are
    memory.check(draft)
    start_tensors(draft, start)  # opened here, read below: the wrong registers are an error now
    method = draft.module.method
    inputs = open_inputs(
        with_paths(settings.data, settings.init_from, workdir),
        start.config,
        method,
        workdir / "index",
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        seed=settings.seed,
        held_out_rows=settings.evaluation.rows,
        shares=[hosts for hosts, _ in row_shares(mesh, settings.batch_size // settings.micro_batches)],
    )
    schedule = inputs.train.schedule
    total_steps = settings.total_steps or settings.epochs * schedule.steps_per_epoch
    say(
        f"{len(inputs.index.text_lengths)} rows, {len(inputs.index.bad)} of them bad; {schedule.steps_per_epoch} steps "
        f"per epoch, programs to compile: {len(schedule.layouts)}; {schedule.padding_share:.1%} of text is padding"
    )

    # --- model, optimizer, resume -----------------------------------------------------------------------------------
    run = make_run(settings, start.config, mesh, total_steps)
    memory.check(run, schedule.layouts)
    with (
        jax.set_mesh(mesh),
        Checkpoints(
            workdir / "checkpoints",
            settings.checkpoint.every,
            settings.checkpoint.keep_last,
            settings.checkpoint.keep_every,
        ) as checkpoints,
    ):
        first_step, known_bad = checkpoints.latest() or 0, inputs.index.bad
        train, frozen = start_params(run, start)
        if first_step:
            train = {}  # its memory is needed
            saved = checkpoints.meta(first_step)
            check_data(saved, schedule.digest(), workdir)
            known_bad = [(row, reason) for row, reason in saved["bad_rows"]]
            state = checkpoints.restore(first_step, run.state)
        elif (workdir / "model").exists():
            raise UserError(
                f"{workdir} holds a finished model, and no checkpoint to go on from: give another --workdir"
            )
        else:
            state = start_state(run, train)
            train = {}
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        say(f"from {described(start, settings, method.registers)}; {method.spec}; mesh {sizes}")
        say(
            f"{size_of(state.train)} parameters learn, {size_of(frozen)} are frozen; step {first_step} of {total_steps}"
        )

        # --- loop ---------------------------------------------------------------------------------------------------
        meta = {"data": schedule.digest(), "compression": method.spec}
        finished = first_step >= total_steps
        with (
            Metrics(workdir, total_steps, is_first, first_step, settings.wandb, config.to_dict()) as metrics,
            Loader(
                inputs.train,
                first_step,
                total_steps,
                settings.data.workers,
                known_bad,
                settings.data.max_bad_rows,
            ) as loader,
        ):
            late = Late(Watch(settings, schedule, mesh, metrics, total_steps))
            usage, compiled = Usage(run, inputs.index), set()
            for step in range(first_step, total_steps):
                with clock.measure("data"):
                    _, parts, _ = next(loader)
                layout, rows = schedule.at(step)
                if step == 0 and is_first:
                    records.show_batch(parts, inputs.tokenizer, workdir / "first_batch")
                is_new = layout not in compiled
                with clock.measure("compile" if is_new else "step"), memory.explained(run, layout):
                    sizes = sizes_of(run, layout.parts)
                    state, result = run.step(state, frozen, on_mesh(parts, mesh), np.int32(step), sizes=sizes)
                    late.push(step, result)
                    if is_new:
                        jax.block_until_ready(result["loss"])
                compiled.add(layout)
                late.amend(usage.of_step(rows, layout, clock.lap()) | peak_memory())
                done = step + 1
                finished = done == total_steps
                leaving = checkpoints.reached_preemption(done) and not finished
                every = settings.evaluation.every
                if inputs.held_out and every and not leaving and (finished or done % every == 0):
                    with clock.measure("evaluation"):
                        late.amend({"held_out_loss": held_out_loss(run, state, frozen, inputs.held_out)})
                if checkpoints.is_due(done) or finished:
                    with clock.measure("checkpoint"):
                        late.flush()  # a bad step must be known before what follows it is kept
                        bad = records.gathered(loader.bad_rows)
                        checkpoints.save(done, state, {**meta, "step": done, "bad_rows": bad}, force=finished)
                    # Each loader counts the rows of its own host, and stops early; all of them together stop here.
                    check_bad_rows(bad, settings.data.max_bad_rows, inputs.train.reader.records)
                if leaving:
                    checkpoints.wait()
                    say(f"told to stop: step {done} is saved, the same command goes on from there")
                    break
            late.flush()
            bad = records.gathered(loader.bad_rows)
        checkpoints.wait()

        # --- end ----------------------------------------------------------------------------------------------------
        if is_first and bad:
            records.list_bad_rows(bad, workdir / "bad_rows.jsonl")
            say(f"{len(bad)} rows were left out; {workdir / 'bad_rows.jsonl'} names them")
        if finished and not (workdir / "model").exists():
            export(run, state.train, start, inputs.tokenizer_folder, workdir / "model")
        if finished:
            shares = sorted(clock.shares().items(), key=lambda item: -item[1])
            spent = "; time went to " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
            say(f"done: the model is in {workdir / 'model'}{spent if first_step < total_steps else ''}")


class Watch:
    """Receives each step's values one step late: logs them, and stops or counts where a step was bad."""

    def __init__(self, settings: Settings, schedule: Schedule, mesh: Mesh, metrics: Metrics, total_steps: int) -> None:
        self._settings, self._schedule, self._metrics, self._skipped = settings, schedule, metrics, 0
        self._last, self._before = total_steps - 1, time.perf_counter()
        shares = row_shares(mesh, settings.batch_size // settings.micro_batches)
        # On the devices, the rows of a part stand in this order.
        self._order = np.argsort(np.concatenate([places for _, places in shares]))

    def __call__(self, step: int, values: dict[str, Any]) -> None:
        row_loss = np.asarray(values.pop("row_loss"))
        # Steps are fetched in order, each when it is done: the time between two of them is the time of a step.
        self._before, seconds = time.perf_counter(), time.perf_counter() - self._before
        values |= {"step_time": seconds, "tokens_per_second": values["tokens"] / seconds}
        values |= share_of_peak(values["flops"] / seconds)
        is_special = values["bad"] or "held_out_loss" in values or step == self._last
        if step % self._settings.log_every == 0 or is_special:
            self._metrics.log(step, values)
        if not values["bad"]:
            return
        self._skipped += 1
        rows = self._schedule.at(step)[1][:, self._order].reshape(-1)
        worst = np.argsort(-np.where(np.isfinite(row_loss), row_loss, np.inf))[:8]
        said = (
            f"step {step} is bad (loss {values['loss']}, gradient norm {values['grad_norm']}); its rows of highest "
            f"loss are {', '.join(f'{rows[at]} ({row_loss[at]:.3g})' for at in worst if rows[at] >= 0)}"
        )
        action = self._settings.bad_step
        if action.action == "stop" or self._skipped > action.most:
            raise UserError(
                f"{said}; go on without such steps by config.bad_step.action=skip, or start anew in another --workdir, "
                "with the data mended or a lower learning rate"
            )
        self._metrics.say(f"skipped: {said}")


def described(start: Checkpoint, settings: Settings, registers: int) -> str:
    random = f"random weights (size {settings.size}, seed {settings.seed})"
    weights = random if settings.init_from == "random" else f"{start.folder} ({start.format})"
    return f"{weights}, registers drawn from seed {settings.seed}" if registers and not start.registers else weights


def size_of(params: Params) -> str:
    numbers = sum(leaf.size for leaf in params.values())
    return f"{numbers / 1e6:,.1f} M" if numbers > 1e6 else f"{numbers:,}"


def check_data(meta: dict[str, Any], data: str, workdir: Path) -> None:
    if meta.get("data") != data:
        raise UserError(
            f"the data of the run in {workdir} has changed since its checkpoint: rows, lengths or shapes are not the "
            "same; put the old data back, or give another --workdir"
        )


def peak_memory() -> dict[str, int]:
    used = device_memory()
    return {} if used is None else {"memory": used}


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def command_line() -> None:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the folder of this run", flag_values=values)
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where it is not found", flag_values=values)
        flags.DEFINE_integer("processes", None, "how many processes there are", flag_values=values)
        flags.DEFINE_integer("process_id", None, "which of them this is, from 0", flag_values=values)
        flags.DEFINE_integer("start_timeout", 300, "seconds to wait for the other processes", flag_values=values)

    given = command.parse("train.py", define)
    if not given.workdir:
        raise UserError("--workdir=DIR is missing")
    logging.set_verbosity(logging.ERROR)
    read(given.config)  # before anything touches a device
    distributed.start(given.coordinator, given.processes, given.process_id, given.start_timeout)
    main(given.config, given.workdir)


if __name__ == "__main__":
    sys.exit(exit_status(command_line))
