"""Two processes with one mesh over both: each reads its own share of the checkpoint, together they are the model.

Run as a script, this file is one of the two processes.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import victor_jax
from victor_jax.compression.spec import parse
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.sharding.mesh import make_mesh, of_parameter
from victor_jax.weights.checkpoint import Checkpoint, expected
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.place import gather, place
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import Index, Tensor, from_array
from victor_jax.weights.write import write_checkpoint

CONFIG = replace(
    SIZES["small"], image_token=250, pad_token=0, language=replace(SIZES["small"].language, vocabulary=256)
)
FORMATS = ("hf", "orbax")
METHOD = "victor:registers=4,layer=2"
MODULE = VLMModule(CONFIG, parse(METHOD, CONFIG))
DEVICES = 4  # of each process
SECONDS = 240


def batch() -> dict[str, np.ndarray]:
    """Four rows with one image each, and the text of each row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, CONFIG.image_token, (4, CONFIG.features_per_image + 6))
    ids[:, 2:-4] = CONFIG.image_token
    size = CONFIG.vision.image_size
    return {"input_ids": ids, "pixel_values": rng.normal(size=(4, 3, size, size)).astype(np.float32)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the model in each format, and what the two processes found."""
    rng = np.random.default_rng(0)
    shapes = {name: leaf.shape for name, leaf in expected(CONFIG).items()} | {REGISTERS: (4, CONFIG.language.width)}
    tensors = {
        name: from_array(rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)) for name, shape in shapes.items()
    }
    root = tmp_path_factory.mktemp("two")
    for format in FORMATS:
        write_checkpoint(Checkpoint("memory", root, CONFIG, tensors, METHOD), root / format, format, lambda _: None)
    run_both(root)
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_both(root: Path) -> None:
    """The two processes, to their end or the time limit; what they print is shown where one fails."""
    environment = os.environ | {"PYTHONPATH": str(Path(victor_jax.__file__).parents[1])}
    port = free_port()
    children, logs = [], [root / "0.log", root / "1.log"]
    try:
        for process, log in enumerate(logs):
            command = [sys.executable, __file__, str(process), str(port), str(root)]
            with log.open("w") as file:
                children.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        codes = [child.wait(SECONDS) for child in children]
    except subprocess.TimeoutExpired:
        codes = ["too long"]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)


@pytest.mark.parametrize("format", FORMATS)
def test_two_processes_hold_and_answer_like_one(root: Path, format: str) -> None:
    alone = victor_jax.load(root / format, dtype="float32")
    logits, tokens = alone.logits(**batch()), alone.generate_ids(**batch(), max_new_tokens=3)
    for process in (0, 1):
        found = np.load(root / f"{format}-{process}.npz")
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
        np.testing.assert_array_equal(found["tokens"], tokens)


def main(process: int, port: int, root: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles in a third of the time
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    side_by_side = make_mesh(fsdp=4, tensor=2)
    interleaved = make_mesh(fsdp=8, devices=sorted(jax.devices(), key=lambda device: (device.id % DEVICES, device.id)))
    copies = make_mesh(data=2, fsdp=4)  # each process holds everything
    for format in FORMATS:
        folder = Path(root) / format
        for mesh, share in ((side_by_side, 0.5), (interleaved, 0.5), (copies, 1.0)):
            check_placement(folder, mesh, share)
        vlm = victor_jax.load(folder, dtype="float32", mesh=make_mesh(data=4, tensor=2))
        np.savez(
            f"{folder}-{process}.npz",
            logits=vlm.logits(**batch()),
            tokens=vlm.generate_ids(**batch(), max_new_tokens=3),
        )


def check_placement(folder: Path, mesh: jax.sharding.Mesh, share: float) -> None:
    """This process holds the right slices, and has read of each tensor what it holds of it, once."""
    read: dict[str, int] = {}

    def counting(name: str, tensor: Tensor) -> Tensor:
        def counted(index: Index) -> np.ndarray:
            part = tensor.read(index)
            read[name] = read.get(name, 0) + part.size
            return part

        return replace(tensor, read=counted)

    tensors = open_checkpoint(folder).tensors
    counted = {name: counting(name, tensor) for name, tensor in tensors.items()}
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=of_parameter(path, leaf.shape, leaf.spec, mesh))
        for path, leaf in parameters(MODULE).items()
    }
    params = place(abstract, counted, MODULE)
    held = 0
    for path, leaf in params.items():
        whole = gather(path, tensors, MODULE, np.float32).load()
        assert len(leaf.addressable_shards) == DEVICES, path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index], err_msg=path)
        parts = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
        held += sum(parts.values())
    assert sum(read.values()) == held
    total = sum(leaf.size for leaf in params.values())
    assert abs(held / total - share) < 0.05, f"{held} of {total}"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
