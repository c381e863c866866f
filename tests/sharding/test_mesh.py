"""Every parameter of the models that we run has one place on the mesh, and the big ones are cut."""

import math
from dataclasses import replace

import jax
import pytest
from jax.sharding import PartitionSpec

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.config import ProjectorConfig, VLMConfig
from victor_jax.models.layers import Lora
from victor_jax.models.parameters import Declared
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.sharding.mesh import AXES, make_mesh, of_parameter

SMALL = SIZES["small"]
MODELS: dict[str, VLMConfig] = {
    "7b": SIZES["7b"],
    "13b": SIZES["13b"],
    "qwen2": replace(SMALL, language=replace(SMALL.language, family="qwen2", qkv_bias=True, tied_embeddings=True)),
    "linear projector": replace(SMALL, projector=ProjectorConfig("linear", bias=True)),
    "joined vision layers": replace(SMALL, feature_levels=(1, 3)),
}
POD = jax.sharding.AbstractMesh((2, 32, 4), AXES)


def declared(config: VLMConfig) -> dict[str, Declared]:
    """Of the richest model: with registers, and with adapters on every linear layer of the language tower."""
    return parameters(VLMModule(config, parse("victor:registers=8,layer=3", config), lora=Lora(128, 256)))


def placed(path: str, leaf: Declared, mesh) -> tuple[int, ...]:
    return of_parameter(path, leaf.shape, leaf.spec, mesh).shard_shape(leaf.shape)


@pytest.mark.parametrize("model", MODELS)
def test_every_matrix_is_cut_along_both_axes_and_small_leaves_are_whole(model: str) -> None:
    for path, leaf in declared(MODELS[model]).items():
        axes = {axis for cut in leaf.spec if cut for axis in (cut if isinstance(cut, tuple) else (cut,))}
        is_matrix = path.endswith(("kernel", "language/embedding", "language/head", "lora_a", "lora_b"))
        if is_matrix and path != "vision/patch_embedding/kernel":  # that is small too
            assert axes == {"fsdp", "tensor"}, path
        else:
            assert axes <= {"tensor"}, path


@pytest.mark.parametrize("model", ["7b", "13b"])
def test_nearly_all_of_a_real_model_is_cut_over_fsdp(model: str) -> None:
    mesh = make_mesh(fsdp=8)
    leaves = declared(MODELS[model])
    whole = [leaf.shape for path, leaf in leaves.items() if placed(path, leaf, mesh) == leaf.shape]
    assert sum(map(math.prod, whole)) < 0.01 * sum(math.prod(leaf.shape) for leaf in leaves.values())


@pytest.mark.parametrize("model", ["7b", "13b"])
def test_a_real_model_divides_over_the_mesh_of_a_pod(model: str) -> None:
    """The whole model over 128-fold cuts: each device holds its share and the small leaves."""
    leaves = declared(MODELS[model])
    held = sum(math.prod(placed(path, leaf, POD)) for path, leaf in leaves.items())
    assert held < sum(math.prod(leaf.shape) for leaf in leaves.values()) * (1 / 128 + 0.001)


def test_the_layer_axis_of_a_stage_is_never_cut() -> None:
    for path, leaf in declared(SIZES["7b"]).items():
        if "/stages_" in path:
            assert placed(path, leaf, POD)[0] == leaf.shape[0], path


def test_an_axis_that_does_not_divide_is_named_with_its_parameter_and_size() -> None:
    with pytest.raises(UserError, match=r"language/embedding \(32003, 4096\).* 32003 by tensor=2"):
        of_parameter("language/embedding", (32003, 4096), PartitionSpec("tensor", "fsdp"), make_mesh(fsdp=4, tensor=2))


@pytest.mark.parametrize("axes", [{"fsdp": 4}, {"data": 3, "tensor": 3}])
def test_a_mesh_of_another_size_than_the_devices_is_an_error(axes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"needs {math.prod(axes.values())} devices, there are 8"):
        make_mesh(**axes)
