"""A device's share of a parameter is read from its file as that share, through transposes and stacks of layers.

What is read is measured in three ways, none of which depends on a clock or on the page cache: by the slices that
reach the file's own tensors; by the bytes that went through read(), which Linux counts in /proc/self/io; and for
safetensors, whose file is mapped into memory and never read(), by the memory that the call takes.
"""

import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from victor_jax.compression.spec import parse
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.sharding.mesh import make_mesh, of_parameter
from victor_jax.weights import orbax_format
from victor_jax.weights.checkpoint import Checkpoint, expected
from victor_jax.weights.folder import read_folder, read_safetensors
from victor_jax.weights.names import REGISTERS, from_torch
from victor_jax.weights.place import gather, place
from victor_jax.weights.tensors import Index, Tensor, from_array
from victor_jax.weights.torch_files import read_torch_file
from victor_jax.weights.write import write_checkpoint

CONFIG = SIZES["small"]
MODULE = VLMModule(CONFIG, parse("victor:registers=8,layer=3", CONFIG))
PARAMETERS = parameters(MODULE)
IO = Path("/proc/self/io")
counts_reads = pytest.mark.skipif(not IO.exists(), reason="only Linux counts the bytes that a process reads")
HEADERS = 2**16  # more than the descriptions in any file here


def bytes_read() -> int:
    return int(IO.read_text().split("rchar:")[1].split()[0])


def counted(tensors: dict[str, Tensor], log: list[int]) -> dict[str, Tensor]:
    """The same tensors; `log` gets the bytes of each slice that is asked of them."""

    def counting(tensor: Tensor) -> Tensor:
        def read(index: Index) -> np.ndarray:
            part = tensor.read(index)
            log.append(part.nbytes)
            return part

        return replace(tensor, read=read)

    return {name: counting(tensor) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    whole = expected(CONFIG) | {REGISTERS: PARAMETERS[REGISTERS]}
    return {name: rng.standard_normal(leaf.shape, np.float32) for name, leaf in whole.items()}


@pytest.fixture(scope="module")
def folders(source: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights as safetensors in Hugging Face's layout and as Orbax."""
    root = tmp_path_factory.mktemp("formats")
    tensors = {name: from_array(array) for name, array in source.items()}
    checkpoint = Checkpoint("memory", root, CONFIG, tensors, MODULE.method.spec)
    for format in ("hf", "orbax"):
        write_checkpoint(checkpoint, root / format, format, progress=lambda _: None)
    return {format: root / format for format in ("hf", "orbax")}


def open_counted(format: str, folders: dict[str, Path], log: list[int]) -> dict[str, Tensor]:
    """Tensors by our names, counted where the file gives them out."""
    if format == "orbax":
        return counted(orbax_format.read_params(folders["orbax"]), log)
    files = read_folder(folders["hf"])
    if format == "bin":
        torch = pytest.importorskip("torch", reason="the .bin file is written by torch")
        file = folders["hf"].parent / "pytorch_model.bin"
        torch.save({key: torch.from_numpy(tensor.load()) for key, tensor in files.items()}, file)
        files = read_torch_file(file)
    table, _ = from_torch(counted(files, log), str(folders["hf"]))
    return table | counted(read_safetensors(folders["hf"] / "victor.safetensors"), log)


@pytest.mark.parametrize("format", ["hf", "bin", "orbax"])
def test_each_device_asks_the_file_for_its_shard_and_nothing_else(
    format: str, folders: dict[str, Path], source: dict[str, np.ndarray]
) -> None:
    log: list[int] = []
    tensors = open_counted(format, folders, log)
    mesh = make_mesh(fsdp=4, tensor=2)
    for path, declared in PARAMETERS.items():
        shape = declared.shape
        leaf = gather(path, tensors, MODULE, np.float32)
        whole = gather(path, {name: from_array(array) for name, array in source.items()}, MODULE, np.float32).load()
        for index in of_parameter(path, shape, declared.spec, mesh).devices_indices_map(shape).values():
            log.clear()
            shard = leaf.read(tuple(slice(*part.indices(n)) for part, n in zip(index, shape, strict=True)))
            np.testing.assert_array_equal(shard, whole[index], err_msg=path)
            assert sum(log) == shard.nbytes, path


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}], ids=str)
def test_a_process_reads_every_byte_once_however_many_devices_hold_it(
    axes: dict[str, int], folders: dict[str, Path]
) -> None:
    log: list[int] = []
    tensors = open_counted("hf", folders, log)
    mesh = make_mesh(**axes)
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=of_parameter(path, leaf.shape, leaf.spec, mesh))
        for path, leaf in PARAMETERS.items()
    }
    params = place(abstract, tensors, MODULE)
    assert sum(log) == sum(leaf.nbytes for leaf in params.values())


def eighths(shape: tuple[int, int]) -> Iterable[Index]:
    """A middle eighth along the rows, and one along the columns."""
    rows, columns = shape
    yield slice(3 * rows // 8, 4 * rows // 8), slice(0, columns)
    yield slice(0, rows), slice(3 * columns // 8, 4 * columns // 8)


@counts_reads
@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 11008), (11008, 4096)], ids=str)
def test_an_eighth_of_a_7b_kernel_reads_at_most_two_from_orbax(shape: tuple[int, int], tmp_path: Path) -> None:
    """Orbax reads whole chunks; ours are so small that a shard straddles few of them, along either axis."""
    kernel = np.random.default_rng(0).integers(0, 2**15, shape, np.uint16).view(ml_dtypes.bfloat16)
    orbax_format.write_params(tmp_path, {"kernel": from_array(kernel)}, progress=lambda _: None)
    tensor = orbax_format.read_params(tmp_path)["kernel"]
    for index in eighths(shape):
        before = bytes_read()
        part = tensor.read(index)
        assert bytes_read() - before < 2 * part.nbytes + HEADERS
        np.testing.assert_array_equal(part.view(np.uint16), kernel[index].view(np.uint16))


@counts_reads
def test_a_slice_of_rows_is_all_that_is_read_of_a_torch_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the .bin file is written by torch")
    matrix = torch.arange(2**20, dtype=torch.float32).reshape(1024, 1024)
    torch.save({"before": matrix, "matrix": matrix + 1, "after": matrix}, tmp_path / "pytorch_model.bin")
    tensor = read_torch_file(tmp_path / "pytorch_model.bin")["matrix"]
    rows, _ = eighths((1024, 1024))
    before = bytes_read()
    part = tensor.read(rows)
    assert bytes_read() - before < part.nbytes + HEADERS
    np.testing.assert_array_equal(part, (matrix + 1).numpy()[rows])


def test_a_slice_of_a_safetensors_file_takes_the_memory_of_that_slice(tmp_path: Path) -> None:
    matrix = np.arange(2**22, dtype=np.float32).reshape(2048, 2048)
    save_file({"before": matrix, "matrix": matrix + 1}, tmp_path / "model.safetensors")
    tensor = read_safetensors(tmp_path / "model.safetensors")["matrix"]
    for index in eighths((2048, 2048)):
        tracemalloc.start()
        part = tensor.read(index)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert part.nbytes <= peak < part.nbytes + HEADERS
        np.testing.assert_array_equal(part, (matrix + 1)[index])
