"""The quickstart's driver: what is done is not done again, what fails is told, what it shows is counted right."""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import train
from examples.quickstart.__main__ import GO_ON, METHODS, going_on, leftovers, llava
from examples.quickstart.digits import Task
from examples.quickstart.jobs import Job, Runner, environment
from examples.quickstart.report import Floor, Row, as_table, by_steps, draw, positions
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES
from victor_jax.training.settings import read


def job(folder, name, code):
    """`code` runs in the job's folder, and says that it is done by making the file `name`."""
    script = folder / f"{name}.py"
    script.write_text(f"import os; os.chdir({str(folder)!r}); {code}; open({name!r}, 'w').close()")
    return Job(name, (str(script),), folder / name, folder / "lines", 1)


def test_jobs_run_in_order_and_once(tmp_path):
    chain = [job(tmp_path, name, f"open('said', 'a').write({name!r})") for name in ("one", "two")]
    for _ in range(2):
        Runner(tmp_path / "logs").run(chain)
    assert (tmp_path / "said").read_text() == "onetwo"


def test_a_module_runs_as_python_runs_it(tmp_path):
    (tmp_path / "given").write_text("[1]")
    made = tmp_path / "made"
    Runner(tmp_path / "logs").run(
        [Job("tool", ("-m", "json.tool", "--compact", str(tmp_path / "given"), str(made)), made)]
    )
    assert made.read_text() == "[1]\n"


def test_a_failure_is_told_with_its_last_line_and_its_log(tmp_path):
    broken = job(tmp_path, "broken", "raise SystemExit('error: the image folder is gone')")
    after = job(tmp_path, "after", "pass")
    with pytest.raises(UserError) as error:
        Runner(tmp_path / "logs").run([broken, after])
    assert str(error.value) == (
        f"broken failed: error: the image folder is gone (all of it is in {tmp_path / 'logs' / 'broken.log'})"
    )
    assert not after.done.exists()


def test_what_runs_beside_a_failure_is_told_to_stop(tmp_path):
    waits = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), exit(0)))"
    beside = job(tmp_path, "beside", f"{waits}; open('ready', 'w').close(); time.sleep(60)")
    begun = "import pathlib, time; [time.sleep(0.05) for _ in iter(pathlib.Path('ready').exists, True)]; exit(3)"
    with pytest.raises(UserError, match="broken failed"):
        Runner(tmp_path / "logs").run([job(tmp_path, "broken", begun)], [beside], at_once=2)
    assert (tmp_path / "saved").exists()
    assert not beside.done.exists()


DRIVER = """
import sys
from pathlib import Path
from examples.quickstart.jobs import Job, Runner, begin
from victor_jax.errors import exit_status

begin()
folder = Path.cwd()
job = Job("waits", (str(folder / "waits.py"),), folder / "done", folder / "lines", 1)
sys.exit(exit_status(lambda: Runner(folder / "logs").run([job])))
"""
WAITS = """
import os, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: (open("saved", "w").close(), exit(0)))
with open("found", "w") as file:
    print("train" in sys.modules, os.environ["JAX_PLATFORMS"], os.getpgrp() == os.getppid(), file=file)
time.sleep(60)
"""


def test_a_signal_to_the_drivers_whole_group_lets_its_jobs_save(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "waits.py").write_text(WAITS)
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, stderr=said, start_new_session=True
        )
    limit = time.monotonic() + 60
    while not (tmp_path / "found").exists() and driver.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGTERM)
    assert driver.wait(60) == 143, (tmp_path / "said").read_text()
    assert (tmp_path / "found").read_text() == "True cpu True\n", (
        "not imported, another platform, or in the driver's group"
    )
    assert (tmp_path / "saved").exists()
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_so_many_tasks_run_at_a_time(tmp_path):
    running, most = [], []

    def task():
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()

    Runner(tmp_path / "logs").together([task] * 6, at_once=2)
    assert len(most) == 6
    assert max(most) == 2


def test_a_user_may_choose_the_platform(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert environment()["JAX_PLATFORMS"] == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert environment()["JAX_PLATFORMS"] == "cuda"


def test_the_heat_map_goes_with_the_first_question_of_two_steps(tmp_path):
    (tmp_path / "data" / "digits").mkdir(parents=True)
    rows = [{"category": kind, "image": f"{kind}.png", "text": f"{kind}?"} for kind in ("place", "below", "right_of")]
    (tmp_path / "data" / "digits" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, look = leftovers(tmp_path)
    assert {"--prompt=below?", f"--image={tmp_path / 'data' / 'digits' / 'images' / 'below.png'}"} <= set(look.command)


def settings_of(job):
    """As train.py reads them off the command."""
    stated, *flags = (word.removeprefix("--config") for word in job.command[1:] if word.startswith("--config"))
    config = importlib.import_module("configs.quickstart").get_config(stated.partition(":")[2])
    for flag in flags:
        path, value = flag.removeprefix(".").split("=", 1)
        *sections, name = path.split(".")
        section = config
        for one in sections:
            section = section[one]
        section[name] = value if isinstance(section[name], str) else ast.literal_eval(value)  # a key that is there
    return read(config)


def test_methods_go_on_from_a_llava_that_kept_its_rate(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "task.json").write_text(json.dumps(asdict(Task(seed=7))))
    pretrain, finetune = (settings_of(job) for job in llava(tmp_path))
    assert ("language" in pretrain.trainable, "language" in finetune.trainable) == (False, True)
    assert (finetune.compression, finetune.optimizer.cosine) == ("full", False)
    for method in METHODS:
        (job,) = going_on(tmp_path, method)
        settings = settings_of(job)
        assert settings.compression.split(":")[0] == method.split("-")[0]
        assert settings.init_from == str(llava(tmp_path)[-1].done)
        assert (settings.total_steps, settings.optimizer.cosine) == (GO_ON, True)


def test_an_unknown_stage_is_an_error():
    with pytest.raises(ValueError, match="'stage3' is no stage"):
        importlib.import_module("configs.quickstart").get_config("stage3,full")


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("full", (16, 16, 16, 16)),
        ("victor:registers=2,layer=2", (18, 18, 2, 2)),
        ("victor:registers=2,layer=4", (18, 18, 18, 18)),
        ("vtw:layer=1", (16, 0, 0, 0)),
    ],
)
def test_visual_positions_are_counted_by_layer(spec, wanted):
    config = SIZES["small"]  # 16 visual tokens, 4 layers
    assert positions(parse(spec, config), config) == wanted


def test_the_table_and_the_figure_compare_with_full_and_with_guessing(tmp_path):
    def row(method, score, flops, registers=0):
        return Row(method, registers, (4, 4), flops, score, {1: 0.9, 2: score}, 1e-4 / flops)

    rows = [row("full", 0.8, 3e6), row("victor:registers=4,layer=2", 0.5, 1.5e6, registers=4)]
    floor = Floor(0.2, {1: 0.25, 2: 0.15})
    table = as_table(rows, floor).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][:5] == ["method", "visual positions", "one step", "two steps", "all"]
    assert cells[3][:6] == ["victor, 4 registers", "4 4", "90.0%", "50.0%", "50.0%", "1.5 (50%)"]
    assert cells[3][-1].endswith("(2.0 x)")
    assert cells[4][:5] == ["no image", "", "25.0%", "15.0%", "20.0%"]
    draw(rows, floor, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_kinds_are_joined_by_their_steps():
    assert by_steps({"below": 50, "place": 100, "right_of": 25, "where": 50}) == {1: 0.75, 2: 0.375}
