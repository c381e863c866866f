"""A model over eight devices is the model on one: parameters, answers and the folder it saves."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the tiny models are built by Hugging Face's classes")

import tiny

import victor_jax
from victor_jax.compression.spec import parse
from victor_jax.inference.vlm import VLM
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.sharding.mesh import AXES, make_mesh, of_parameter
from victor_jax.weights import fresh
from victor_jax.weights.place import place
from victor_jax.weights.read import open_checkpoint

LANGUAGE = "llama_gqa"  # q is [64, 96], k and v are [64, 48], o is [96, 64]
METHODS = ("full", "victor:registers=3,layer=2")
ANSWERING = [(8, 1, 1), (4, 1, 2), (1, 1, 8)]
PLACED = [(1, 8, 1), (2, 2, 2), (8, 1, 1)]
# Text before, between and after the images of each row: rows of many lengths with 0 to 2 images, 8 in all.
ROWS = [[3, 4], [9], [2, 2, 5], [1, 7], [12], [2, 3, 4], [5, 5], [2, 6]]

Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("tiny"), LANGUAGE)


def batch_of(count: int) -> Batch:
    config = tiny.config(LANGUAGE)
    prompts = [tiny.prompt(config, parts, seed)[0] for seed, parts in enumerate(ROWS[:count])]
    ids, mask = np.zeros((2, count, max(map(len, prompts))), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    images = sum(len(parts) - 1 for parts in ROWS[:count])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": tiny.pixels(config, images)}


def load(folder: Path, method: str, axes: tuple[int, ...] | None = None, attention: str = "xla") -> VLM:
    mesh = make_mesh(**dict(zip(AXES, axes, strict=True))) if axes else None
    return victor_jax.load(folder, method, "float32", mesh, attention=attention, seed=0)


def placed(folder: Path, method: str, axes: tuple[int, ...]) -> dict[str, jax.Array]:
    """The parameters on a mesh of any kind, as training places them."""
    checkpoint = open_checkpoint(folder)
    module = VLMModule(checkpoint.config, parse(method, checkpoint.config), jnp.dtype("float32"))
    mesh = make_mesh(**dict(zip(AXES, axes, strict=True)))
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=of_parameter(path, leaf.shape, leaf.spec, mesh))
        for path, leaf in parameters(module).items()
    }
    return place(abstract, fresh.with_own(checkpoint, module.method, 0), module)


@pytest.fixture(scope="module", params=METHODS)
def one_device(request: pytest.FixtureRequest, folder: Path) -> VLM:
    return load(folder, request.param)


@pytest.mark.parametrize("axes", ANSWERING)
def test_a_mesh_answers_like_one_device(folder: Path, one_device: VLM, axes: tuple[int, ...]) -> None:
    vlm = load(folder, one_device.compression, axes)
    batch = batch_of(8)
    np.testing.assert_allclose(vlm.logits(**batch), one_device.logits(**batch), atol=1e-5)
    expected = one_device.generate_ids(**batch, max_new_tokens=4)
    np.testing.assert_array_equal(vlm.generate_ids(**batch, max_new_tokens=4), expected)


def test_rows_and_images_that_the_mesh_does_not_divide_get_the_same_answer(folder: Path) -> None:
    alone, vlm = load(folder, METHODS[1]), load(folder, METHODS[1], (4, 1, 2))
    batch = batch_of(3)
    np.testing.assert_allclose(vlm.logits(**batch), alone.logits(**batch), atol=1e-5)
    expected = alone.generate_ids(**batch, max_new_tokens=4)
    np.testing.assert_array_equal(vlm.generate_ids(**batch, max_new_tokens=4), expected)


@pytest.mark.parametrize(
    ("axes", "shapes"),
    [
        (
            (1, 8, 1),
            {
                "language/stages_1_0/attention/q/kernel": (2, 8, 96),
                "language/stages_1_0/attention/o/kernel": (2, 96, 8),
                "vision/stages_0_0/mlp/up/bias": (3, 48),
                "language/embedding": (256, 8),
                "language/norm/scale": (64,),
                "compression/registers": (3, 64),
            },
        ),
        (
            (2, 2, 2),
            {
                "language/stages_1_0/attention/k/kernel": (2, 32, 24),
                "language/stages_1_0/mlp/down/kernel": (2, 48, 32),
                "vision/stages_0_0/mlp/up/bias": (3, 24),
                "language/embedding": (128, 32),
                "language/head": (32, 128),
                "projector/linear_1/kernel": (16, 32),
            },
        ),
        ((8, 1, 1), {"language/stages_1_0/attention/q/kernel": (2, 64, 96), "language/embedding": (256, 64)}),
    ],
)
def test_each_device_holds_its_share(folder: Path, axes: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    params = placed(folder, METHODS[1], axes)
    held = {path: {shard.data.shape for shard in params[path].addressable_shards} for path in shapes}
    assert held == {path: {shape} for path, shape in shapes.items()}


@pytest.mark.parametrize("axes", PLACED)
def test_the_shards_of_a_mesh_are_the_slices_of_one_device(folder: Path, axes: tuple[int, ...]) -> None:
    whole, cut = load(folder, METHODS[1]).params, placed(folder, METHODS[1], axes)
    assert cut.keys() == whole.keys()
    for path, leaf in cut.items():
        assert len(leaf.addressable_shards) == jax.device_count(), path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(whole[path])[shard.index], err_msg=path)


@pytest.mark.parametrize("format", ["hf", "orbax"])
def test_a_folder_saved_from_a_mesh_holds_the_bits_of_its_source(folder: Path, tmp_path: Path, format: str) -> None:
    load(folder, "full", (4, 1, 2)).save(tmp_path / "saved", format)
    source, saved = open_checkpoint(folder).tensors, open_checkpoint(tmp_path / "saved").tensors
    assert saved.keys() == source.keys()
    for name, tensor in source.items():
        assert saved[name].dtype == tensor.dtype, name
        assert saved[name].load().tobytes() == tensor.load().tobytes(), name


def test_the_splash_kernel_on_a_mesh_agrees_with_xla(folder: Path) -> None:
    batch = batch_of(4)
    expected = load(folder, METHODS[1], (4, 1, 2)).logits(**batch)
    found = load(folder, METHODS[1], (4, 1, 2), attention="splash_interpret").logits(**batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)
