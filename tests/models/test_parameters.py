"""What a parameter starts from follows from its declaration, its name and the seed."""

import numpy as np
import pytest
from small_run import CONFIG

from victor_jax.compression.spec import parse
from victor_jax.models.layers import Lora
from victor_jax.models.parameters import Constant, Declared, Normal, Uniform
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.weights import fresh

SHAPE = (200, 300)


def drawn(start, name="language/embedding", seed=0):
    tensor = fresh.drawn(name, SHAPE, start, seed)
    assert (tensor.shape, tensor.dtype) == (SHAPE, np.float32)
    return tensor.load()


def test_a_normal_start_has_its_spread():
    values = drawn(Normal(0.02))
    assert values.std() == pytest.approx(0.02, rel=0.02)
    assert abs(values.mean()) < 0.0005
    assert np.abs(values).max() > 3 * 0.02, "the tails are there"


def test_a_uniform_start_fills_its_bounds_evenly():
    values = drawn(Uniform(0.25))
    assert 0.249 < np.abs(values).max() <= 0.25
    shares, _ = np.histogram(values, bins=10, range=(-0.25, 0.25))
    np.testing.assert_allclose(shares / values.size, 0.1, atol=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_start_is_that_constant(value):
    assert (drawn(Constant(value)) == value).all()


@pytest.mark.parametrize("start", [Normal(0.02), Uniform(0.25)])
def test_values_are_those_of_the_name_and_the_seed(start):
    np.testing.assert_array_equal(drawn(start), drawn(start))
    for other in (drawn(start, seed=1), drawn(start, name="language/head")):
        assert np.mean(drawn(start) == other) < 0.01


def test_a_slice_is_that_of_the_whole():
    tensor = fresh.drawn("x", SHAPE, Normal(1.0), 0)
    np.testing.assert_array_equal(tensor.read((slice(3, 9), slice(100, 300))), tensor.load()[3:9, 100:300])


@pytest.mark.parametrize("compression", ["full", "victor:registers=2,layer=1", "vtw:layer=0"])
def test_every_parameter_is_declared(compression):
    module = VLMModule(CONFIG, parse(compression, CONFIG), lora=Lora(4, 8.0))
    for path, leaf in parameters(module).items():
        assert isinstance(leaf, Declared), path
        assert len(leaf.axes) == len(leaf.shape), path
        assert leaf.value.dtype == np.float32, path
