"""Trains a model: python train.py --config=configs/finetune.py:registers=8,layer=3 --workdir=DIR [--config.key=value …]

The same command goes on where it stopped, on any number of devices, hosts and data workers.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from victor_jax.compile_cache import use_compile_cache
from victor_jax.data.batches import BatchSource
from victor_jax.data.inputs import open_inputs, with_paths
from victor_jax.data.loader import Loader
from victor_jax.data.records import check_bad_rows
from victor_jax.data.settings import DataSettings
from victor_jax.errors import UserError, exit_status
from victor_jax.evaluation.live import live_score, open_live
from victor_jax.evaluation.tasks import Task
from victor_jax.files import write_whole, writing
from victor_jax.inference.vlm import VLM
from victor_jax.prompt import Prompt
from victor_jax.sharding import distributed
from victor_jax.sharding.mesh import row_shares, rows_on_mesh
from victor_jax.training import command, memory, outputs, setup
from victor_jax.training.checkpoints import Checkpoints, print_no_tracebacks
from victor_jax.training.lock import owned
from victor_jax.training.metrics import Clock, Metrics, StepMonitor, peak_memory, traced
from victor_jax.training.optimizer import Params, learning_rate
from victor_jax.training.settings import read
from victor_jax.training.step import State
from victor_jax.weights.place import place


def main(config: ConfigDict, workdir: str | Path) -> None:
    workdir = outputs.make_workdir(workdir)
    with writing(workdir), owned(workdir) if jax.process_index() == 0 else nullcontext():
        train(config, workdir)


def train(config: ConfigDict, workdir: Path) -> None:
    # --- set-up -----------------------------------------------------------------------------------------------------
    clock, is_first = Clock(), jax.process_index() == 0
    if not config.micro_batches:
        # A run that goes on keeps its number, whatever the devices are now: batches are made of micro-batches.
        before = distributed.agreed(outputs.parts_before(workdir))
        config.micro_batches = before or setup.automatic_parts(read(config), jax.devices())
    settings = read(config)
    mesh = setup.mesh_of(settings, jax.devices())
    if is_first:
        outputs.keep_config(workdir, config.to_dict())
    use_compile_cache(shared=workdir)

    # --- model and step: shapes and places only; no weight is read yet ------------------------------------------------
    start = setup.open_start(settings)
    run = setup.make_run(settings, start.config, mesh)
    tensors = setup.start_tensors(run, start)
    memory.check(run)
    say(f"from {setup.described(run, start)}; {run.module.method.spec}; mesh {dict(mesh.shape)}")
    say(f"parameters: {outputs.parameter_summary(run)}")
    if is_first:
        outputs.list_parameters(run, workdir / "parameters.txt")

    # --- data -------------------------------------------------------------------------------------------------------
    data, wanted = with_paths(settings.data, start.folder, workdir), settings.evaluation
    benchmarks = open_live(wanted.benchmarks, wanted.data, wanted.questions, run.part_rows)
    inputs = open_inputs(
        data,
        start.config,
        run.module.method,
        batch_size=settings.batch_size,
        parts=run.parts,
        seed=settings.seed,
        held_out_rows=wanted.rows,
        shares=[hosts for hosts, _ in row_shares(mesh, run.part_rows)],
    )
    schedule, bad_rows = inputs.train.schedule, inputs.index.bad
    programs = len(schedule.stretches) * max(len(run.module.method.sampled), 1)
    total_steps = settings.total_steps or settings.epochs * schedule.steps_per_epoch
    say(
        f"{len(inputs.index.text_lengths)} rows, {len(bad_rows)} of them bad; {schedule.steps_per_epoch} steps per "
        f"epoch, {run.parts} part{'s' * (run.parts > 1)} of {run.part_rows} rows each; programs to compile: "
        f"{programs}; {schedule.padding_share:.1%} of text is padding"
    )

    kept = settings.checkpoint.keep_last, settings.checkpoint.keep_every
    with jax.set_mesh(mesh), Checkpoints(workdir / "checkpoints", *kept) as checkpoints:
        # --- resume or begin: what is trained is read from the checkpoint or from the start, never from both ----------
        if saved := checkpoints.newest(run.state, lambda meta: outputs.check_data(meta, schedule.digest, workdir)):
            first_step, state, meta = saved
            bad_rows = [(row, reason) for row, reason in meta["bad_rows"]]
        else:
            first_step, state = 0, setup.first_state(run, setup.trained_params(run, tensors))
        frozen = place(run.frozen, tensors, run.module) if first_step < total_steps else {}
        say(f"step {first_step} of {total_steps}")

        # --- loop ---------------------------------------------------------------------------------------------------
        finished, compiled = first_step >= total_steps, set()
        with (
            Metrics(workdir, total_steps, is_first, first_step, settings.wandb, config.to_dict()) as metrics,
            Loader(
                inputs.train, first_step, total_steps, settings.data.workers, bad_rows, settings.data.max_bad_rows
            ) as loader,
            jax.transfer_guard("disallow"),  # whatever is moved between host and devices in the loop says so
        ):
            monitor = StepMonitor(run, inputs.index, metrics, total_steps)
            steps = range(first_step, total_steps)
            for step in traced(steps, workdir / "profile", settings.profile.first, settings.profile.steps):
                with clock.measure("data"):
                    batch = next(loader)
                if step == 0 and is_first:
                    outputs.show_batch(batch.parts, inputs.train.reader.tokenizer, workdir / "first_batch")
                needed = {(shape, run.sampled(step)) for shape in batch.shapes}
                is_new = not needed <= compiled
                with (
                    clock.measure("compile" if is_new else "step"),
                    memory.explained(run, batch.shapes),
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                ):
                    rate = learning_rate(settings.optimizer, step, total_steps)
                    # Gradients of each part added up, then AdamW; a bad step changes nothing (training/step.py).
                    state, result = run.step(state, frozen, zip(batch.parts, batch.shapes, strict=True), step, rate)
                    monitor.push(step, result | monitor.work_of(batch, step))
                    if is_new:
                        jax.block_until_ready(result["loss"])
                compiled |= needed
                monitor.amend({"data_wait": clock.latest["data"]} | peak_memory())
                done = step + 1
                finished = done == total_steps
                leaving = checkpoints.reached_preemption(done) and not finished
                if wanted.every and not leaving and (finished or done % wanted.every == 0):
                    with clock.measure("evaluation"):
                        if inputs.held_out:
                            monitor.amend({"held_out_loss": held_out_loss(run, state, frozen, inputs.held_out)})
                        if benchmarks:
                            monitor.amend(scores(run, state, frozen, data, benchmarks))
                if leaving or finished or done % settings.checkpoint.every == 0:
                    with clock.measure("checkpoint"), jax.transfer_guard("allow"):  # Orbax moves arrays as it likes
                        monitor.flush()  # a bad step must be known before what follows it is kept
                        bad_rows = outputs.gather_bad_rows(loader.bad_rows)
                        checkpoints.save(done, state, {"data": schedule.digest, "bad_rows": bad_rows})
                        if len(bad_rows) > settings.data.max_bad_rows:
                            checkpoints.wait()  # the error below ends all processes at once
                    # Each loader counts the rows of its own host, and stops early; all of them together stop here.
                    check_bad_rows(bad_rows, settings.data.max_bad_rows, inputs.train.reader.records)
                if leaving:
                    break
            monitor.flush()
        checkpoints.wait()

        # --- end ----------------------------------------------------------------------------------------------------
        bad_rows = outputs.gather_bad_rows(loader.bad_rows)
        if is_first and bad_rows:
            lines = (json.dumps({"row": row, "reason": reason}) for row, reason in bad_rows)
            write_whole(workdir / "bad_rows.jsonl", "\n".join(lines) + "\n")
            say(f"{len(bad_rows)} rows were left out; {workdir / 'bad_rows.jsonl'} names them")
        if not finished:
            say(f"told to stop: step {done} is saved, the same command goes on from there")
            return
        if not distributed.agreed(outputs.has_model(workdir)):
            outputs.export(run, state.train, start, tensors, Path(data.tokenizer), workdir / "model")
        spent = ", ".join(f"{name} {share:.0%}" for name, share in clock.shares().items() if share >= 0.005)
        say(f"done: the model is in {workdir / 'model'}; time went to {spent}")


def held_out_loss(run: setup.Run, state: State, frozen: Params, source: BatchSource) -> float:
    """Mean over all supervised positions of one pass; sums cross hosts, never means."""
    total, count = 0.0, 0
    for step in range(source.schedule.steps_per_epoch):
        batch = source[step]
        for part, shape in zip(batch.parts, batch.shapes, strict=True):
            sizes = setup.sizes_of(run, shape)
            evaluated = run.evaluate(state.train, frozen, rows_on_mesh(part, run.mesh), sizes=sizes)
            sums, counts = jax.device_get(evaluated)
            total, count = total + float(np.sum(sums)), count + int(np.sum(counts))
    return total / max(count, 1)


def scores(run: setup.Run, state: State, frozen: Params, data: DataSettings, tasks: list[Task]) -> dict[str, float]:
    """Of the model as it is now, under the mesh that it is trained on."""
    prompt = Prompt(data.template, data.aspect)
    vlm = VLM(run.module, frozen | state.train, run.mesh, {}, Path(data.tokenizer), prompt)
    with jax.transfer_guard("allow"):  # answering moves batches and tokens as it likes
        return {f"eval/{task.benchmark.name}": live_score(vlm, task) for task in tasks}


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
    print_no_tracebacks()
    read(given.config)  # before anything touches a device
    with distributed.joined(given.coordinator, given.processes, given.process_id, given.start_timeout):
        main(given.config, given.workdir)


if __name__ == "__main__":
    sys.exit(exit_status(command_line, interrupted="stopped: the same command goes on from the last checkpoint"))
