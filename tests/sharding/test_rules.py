"""Every parameter of the models that we run has one place on the mesh, and the big ones are cut."""

import math
import re
from dataclasses import replace

import jax
import pytest
from flax.traverse_util import flatten_dict

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.config import ProjectorConfig, VLMConfig
from victor_jax.models.layers import Lora
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, abstract_params
from victor_jax.sharding.mesh import AXES, make_mesh, rows
from victor_jax.sharding.rules import RULES, sharding_of

SMALL = SIZES["small"]
MODELS: dict[str, VLMConfig] = {
    "7b": SIZES["7b"],
    "13b": SIZES["13b"],
    "qwen2": replace(SMALL, language=replace(SMALL.language, family="qwen2", qkv_bias=True, tied_embeddings=True)),
    "linear projector": replace(SMALL, projector=ProjectorConfig("linear", bias=True)),
    "joined vision layers": replace(SMALL, feature_levels=(1, 3)),
}
POD = jax.sharding.AbstractMesh((2, 32, 4), AXES)


def parameter_shapes(config: VLMConfig) -> dict[str, tuple[int, ...]]:
    """Of the richest model: with registers, and with adapters on every linear layer of the language tower."""
    module = VLMModule(config, parse("victor:registers=8,layer=3", config.language.depth), lora=Lora(128, 256))
    return {path: leaf.shape for path, leaf in flatten_dict(abstract_params(module), sep="/").items()}


def matching(path: str) -> list[str]:
    return [pattern for pattern, _ in RULES if re.fullmatch(pattern, path)]


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_matches_exactly_one_rule(model: str) -> None:
    matches = {path: matching(path) for path in parameter_shapes(MODELS[model])}
    assert {path: found for path, found in matches.items() if len(found) != 1} == {}


def test_no_rule_is_dead() -> None:
    used = {pattern for config in MODELS.values() for path in parameter_shapes(config) for pattern in matching(path)}
    assert [pattern for pattern, _ in RULES if pattern not in used] == []


@pytest.mark.parametrize("model", ["7b", "13b"])
def test_nearly_all_of_a_real_model_is_cut_over_fsdp(model: str) -> None:
    mesh = make_mesh(fsdp=8)
    shapes = parameter_shapes(MODELS[model])
    whole = {
        path: shape for path, shape in shapes.items() if sharding_of(path, shape, mesh).shard_shape(shape) == shape
    }
    assert sum(map(math.prod, whole.values())) < 0.01 * sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("model", ["7b", "13b"])
def test_a_real_model_divides_over_the_mesh_of_a_pod(model: str) -> None:
    """The whole model over 128-fold cuts: each device holds its share and the small leaves."""
    shapes = parameter_shapes(MODELS[model])
    held = sum(math.prod(sharding_of(path, shape, POD).shard_shape(shape)) for path, shape in shapes.items())
    assert held < sum(map(math.prod, shapes.values())) * (1 / 128 + 0.001)


def test_the_layer_axis_of_a_stage_is_never_cut() -> None:
    for path, shape in parameter_shapes(SIZES["7b"]).items():
        if "/stages_" in path:
            assert sharding_of(path, shape, POD).shard_shape(shape)[0] == shape[0], path


def test_an_axis_that_does_not_divide_is_named_with_its_parameter_and_size() -> None:
    with pytest.raises(UserError, match=r"language/embedding \(32003, 4096\).* 32003 by tensor=2"):
        sharding_of("language/embedding", (32003, 4096), make_mesh(fsdp=4, tensor=2))


def test_a_parameter_without_a_rule_is_an_error() -> None:
    with pytest.raises(UserError, match="language/stages_0/attention/q/lora has no sharding rule"):
        sharding_of("language/stages_0/attention/q/lora", (4, 8, 8), make_mesh(fsdp=8))


@pytest.mark.parametrize("axes", [{"fsdp": 4}, {"data": 3, "tensor": 3}])
def test_a_mesh_of_another_size_than_the_devices_is_an_error(axes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"needs {math.prod(axes.values())} devices, there are 8"):
        make_mesh(**axes)


def test_rows_are_cut_over_data_and_fsdp_only_where_they_divide() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert rows(mesh, 8).shard_shape((8, 5)) == (2, 5)
    assert rows(mesh, 3).shard_shape((3, 5)) == (3, 5)
