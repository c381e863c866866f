"""What a run says: each step once however often it was killed, and never a wait for the step at hand."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

import victor_jax
from victor_jax.data.schedule import Index
from victor_jax.errors import UserError
from victor_jax.training.metrics import Clock, Metrics, StepMonitor

LOOP = """
import sys
from pathlib import Path
from victor_jax.training.metrics import Metrics
with Metrics(Path(sys.argv[1]), 5, True) as metrics:
    for step in range(5):
        metrics.log(step, {"loss": 2.5, "tokens_per_second": 1234.0})
    metrics.say("a line of its own")
"""


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def log(workdir: Path, steps: range, resume_step: int, loss: float) -> None:
    with Metrics(workdir, 10, True, resume_step) as metrics:
        for step in steps:
            metrics.log(step, {"loss": loss})


def test_a_resumed_run_writes_again_what_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    log(tmp_path, range(7), 0, loss=1.0)
    log(tmp_path, range(4, 10), 4, loss=2.0)
    assert lines_of(tmp_path) == [{"step": step, "loss": 1.0 if step < 4 else 2.0} for step in range(10)]
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    log(tmp_path, range(3), 0, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    log(tmp_path, range(3, 5), 4, loss=1.0)
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Metrics(tmp_path, 2, True) as metrics:
        metrics.log(0, {"loss": 1.0})
        assert len(lines_of(tmp_path)) == 1


def test_other_hosts_write_nothing(tmp_path: Path) -> None:
    with Metrics(tmp_path, 2, False) as metrics:
        metrics.log(0, {"loss": 1.0})
        metrics.say("not heard")
    assert list(tmp_path.iterdir()) == []


def test_arrays_become_numbers_and_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with Metrics(tmp_path, 1, True) as metrics:
        metrics.log(0, {"loss": np.float32("nan"), "bad": np.bool_(True), "grad_norm": jnp.float32(1.5)})
    assert lines_of(tmp_path) == [{"step": 0, "loss": None, "bad": True, "grad_norm": 1.5}]


def test_without_a_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    root = str(Path(victor_jax.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOOP, str(tmp_path)], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "step 1/5, loss 2.5000, 1,234 tokens/s",
        "step 5/5, loss 2.5000, 1,234 tokens/s",
        "a line of its own",
    ]


def test_wandb_that_is_not_there_is_said_before_the_run(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(UserError, match="pip install wandb"):
        Metrics(tmp_path, 1, True, wandb=True)


@pytest.fixture
def late(tmp_path: Path) -> Iterator[StepMonitor]:
    """Of a run of two steps that writes to this folder."""
    run, index = small_run.small_run(), Index(*(np.zeros(1, np.int32),) * 3, [], np.zeros(1, np.uint32))
    with Metrics(tmp_path, 2, True) as metrics:
        yield StepMonitor(run, index, metrics, total_steps=2)


def step_of(loss: jax.Array) -> dict[str, Any]:
    """What is known of a step of one row."""
    return {"loss": loss, "bad": False, "tokens": 8, "flops": 1.0, "rows": np.zeros(1), "row_loss": [np.zeros(1)]}


def test_a_step_is_fetched_when_the_next_one_is_pushed(tmp_path: Path, late: StepMonitor) -> None:
    late.push(0, step_of(jnp.asarray(0.5)))
    assert lines_of(tmp_path) == []
    late.amend({"data_wait": 0.25})
    late.push(1, step_of(jnp.asarray(1.5)))
    (line,) = lines_of(tmp_path)
    assert (line["step"], line["loss"], line["data_wait"]) == (0, 0.5, 0.25)
    late.flush()
    late.flush()
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1]


def test_logging_does_not_wait_for_the_step_at_hand(late: StepMonitor) -> None:
    def slow(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 60, lambda _, y: jnp.tanh(y @ y), x)

    compiled = jax.jit(slow).lower(jax.ShapeDtypeStruct((500, 500), jnp.float32)).compile()
    x = jax.block_until_ready(jnp.full((500, 500), 0.01))
    late.push(0, step_of(jax.block_until_ready(compiled(x)[0, 0])))
    result = compiled(x)
    late.push(1, step_of(result[0, 0]))
    assert not result.is_ready()
    late.flush()
    assert result.is_ready()


def test_the_clock_says_where_the_time_went() -> None:
    clock = Clock()
    for seconds in (0.04, 0.02):
        with clock.measure("step"):
            time.sleep(seconds)
    with clock.measure("compile"):
        time.sleep(0.2)
    time.sleep(0.02)
    shares = clock.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert shares.keys() == {"step", "compile", "other"}
    assert shares["compile"] > shares["step"] > 0
    assert 0.02 <= clock.latest["step"] < 0.2 <= clock.latest["compile"]
