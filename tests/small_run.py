"""Runs of train.py that are quick: a tiny random checkpoint, made-up data, a handful of steps.

The same overrides serve a run in this process and one in a process of its own, as a user starts it.
"""

import importlib
import json
import os
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from PIL import Image

import train
from examples.quickstart.jobs import FORKED, run_command
from victor_jax.compression.plan import Method
from victor_jax.data import inputs
from victor_jax.data.inputs import Inputs
from victor_jax.data.sample import write_sample
from victor_jax.models.config import VisionConfig
from victor_jax.models.sizes import llava
from victor_jax.sharding.mesh import make_mesh, row_shares
from victor_jax.training import settings
from victor_jax.training.setup import Run, make_run, parts_of
from victor_jax.weights.checkpoint import Checkpoint, expected
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

ROOT = Path(train.__file__).parent
IMAGE_SIZE = 28  # four visual tokens
VISION = VisionConfig(32, 64, 3, 4, IMAGE_SIZE, 14, "quick_gelu", 1e-5)
_llava = llava(64, 96, 3, VISION, head_dim=8)
CONFIG = replace(_llava, image_token=511, pad_token=0, language=replace(_llava.language, vocabulary=512))
RECIPE = "registers=2,layer=1,runlocal"
SECONDS = 240  # until a child counts as hung
JAX = {  # settings of a child
    "jax_platforms": "cpu",
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
FORKED.set_forkserver_preload(["tests.without_torch.sitecustomize", "examples.quickstart.forked"])

Overrides = dict[str, Any]  # by dotted key


def share_compile_cache(folder: Path) -> None:
    """All runs of a module, in this process and in children, compile each program once."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()


def forget_compile_cache() -> None:
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def write_start(folder: Path, seed: int = 0, **language: Any) -> Path:
    """A Hugging Face folder with random weights of order 1 and the tokenizer of the made-up data."""
    config = replace(CONFIG, language=replace(CONFIG.language, **language))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in expected(config).items():
        shape = leaf.shape
        drawn = rng.normal(0, shape[0] ** -0.5 if len(shape) > 1 else 0.1, shape)
        tensors[name] = from_array((drawn + name.endswith("scale")).astype(np.float32))
    sample = write_sample(folder / "sample")
    checkpoint = Checkpoint("memory", sample / "tokenizer", config, tensors)
    write_checkpoint(checkpoint, folder / "start", "hf", lambda _: None)
    return folder / "start"


def rewrite(checkpoint: Checkpoint, folder: Path, changed: dict[str, np.ndarray]) -> None:
    """Writes the checkpoint once more, with some tensors replaced."""
    shutil.rmtree(folder)
    tensors = checkpoint.tensors | {name: from_array(array) for name, array in changed.items()}
    write_checkpoint(replace(checkpoint, tensors=tensors), folder, "hf", lambda _: None)


def open_inputs(parsed: settings.Settings, start: Checkpoint, method: Method, mesh: Mesh, workdir: Path) -> Inputs:
    """As train.py does it."""
    parts = parts_of(parsed, mesh.shape["data"] * mesh.shape["fsdp"])
    return inputs.open_inputs(
        inputs.with_paths(parsed.data, start.folder, workdir),
        start.config,
        method,
        batch_size=parsed.batch_size,
        parts=parts,
        seed=parsed.seed,
        held_out_rows=parsed.evaluation.rows,
        shares=[hosts for hosts, _ in row_shares(mesh, parsed.batch_size // parts)],
    )


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def image_row(number: int) -> dict[str, Any]:
    answer = ("red", "green", "blue", "yellow")[number % 4]
    return {"image": f"{number}.png", "conversations": conversation("<image>\nWhat colour is the shape?", answer)}


def write_data(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Rows, and an image of noise for each that names one; as they are by default, they make up one program."""
    rows = [image_row(number) for number in range(40)] if rows is None else rows
    folder.mkdir()
    for number, row in enumerate(rows):
        if "image" in row:
            noise = np.random.default_rng(number).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            Image.fromarray(noise).save(folder / row["image"])
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def overrides(start: Path, data: Path, **more: Any) -> Overrides:
    """`data__path` stands for data.path. A data axis would cost a program per leaf: its copies are saved in slices."""
    return {
        "init_from": str(start),
        "total_steps": 10,
        "data.path": str(data / "data.json"),
        "data.images": str(data),
        "checkpoint.every": 5,
        "evaluation.every": 0,
        "evaluation.rows": 0,
        "mesh.data": 1,
        "mesh.fsdp": 8,
        "mesh.tensor": 1,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def config_of(changes: Overrides, recipe: str = "finetune", argument: str = RECIPE) -> Any:
    config = importlib.import_module(f"configs.{recipe}").get_config(argument)
    config.update_from_flattened_dict(changes)
    return config


def run_here(workdir: Path, changes: Overrides, recipe: str = "finetune", argument: str = RECIPE) -> None:
    train.main(config_of(changes, recipe, argument), workdir)


def command(workdir: Path, changes: Overrides, recipe: str = "finetune", argument: str = RECIPE) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs' / recipe}.py:{argument}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def environment(devices: int = 1) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "without_torch"))),
        "JAX_NUM_CPU_DEVICES": str(devices),
        **{name.upper(): str(value) for name, value in JAX.items()},
    }


class Child:
    """A script in a process of its own, forked from one that has imported what train.py does. Of subprocess.Popen it
    has what tests use."""

    def __init__(self, arguments: list[str], log: Path, devices: int):
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        settings = JAX | {"jax_num_cpu_devices": devices, "jax_compilation_cache_dir": cache}
        self._process = FORKED.Process(target=_run, args=(arguments, log, environment(devices), settings))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"it still runs after {timeout} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(arguments: list[str], log: Path, variables: dict[str, str], settings: dict[str, Any]) -> None:
    assert sys.modules["torch"] is None
    os.environ.update(variables)
    for name, value in settings.items():  # jax reads the variables when it is imported
        jax.config.update(name, value)
    run_command(arguments, log)


def begin(arguments: list[str], log: Path, devices: int = 1) -> Child:
    """`arguments` as `command` gives them."""
    return Child(arguments[1:], log, devices)


def run_process(workdir: Path, changes: Overrides, devices: int = 1, recipe: str = "finetune") -> str:
    """What the run printed; a failure shows it."""
    log = workdir.with_name(workdir.name + ".log")
    finish([begin(command(workdir, changes, recipe), log, devices)], [log])
    return log.read_text()


def begin_two(
    workdir: Path, changes: Overrides, devices: int = 1, scripts: tuple[str, str] = (train.__file__,) * 2
) -> tuple[list[Child], list[Path]]:
    """Two processes of one run, `devices` each."""
    logs = [workdir.with_name(f"{workdir.name}-{process}.log") for process in (0, 1)]
    arguments = command(workdir, changes)[2:]
    together = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
    children = [
        begin([sys.executable, scripts[process], *arguments, *together, f"--process_id={process}"], log, devices)
        for process, log in enumerate(logs)
    ]
    return children, logs


def finish(children: list[Child], logs: list[Path]) -> None:
    try:
        codes: list[Any] = [child.wait(SECONDS) for child in children]
    except TimeoutError:
        codes = ["too long"]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert codes == [0] * len(children), f"{codes}\n" + "\n".join(log.read_text() for log in logs)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Every whole line; a run that is going on may be writing another."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(workdir: Path) -> list[float]:
    """By step: each stands there once."""
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


def assert_identical(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def small_run(changes: Overrides | None = None, recipe: str = "finetune", argument: str = RECIPE) -> Run:
    """The static half of a run on one device, of the tiny architecture."""
    config = config_of({"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1} | (changes or {}), recipe, argument)
    return make_run(settings.read(config), CONFIG, make_mesh(devices=jax.devices()[:1]))
