"""What answering does differently on a GPU and a TPU, computed here on CPU: the same numbers, from other arrays."""

import functools

import numpy as np
import pytest
import tiny

import victor_jax
from victor_jax.inference import platform, vlm
from victor_jax.weights.place import layers_of

STEPS = 6


# No deeper than needs be: each layer that has arrays of its own is compiled on its own.
CONFIG = tiny.config("llama_gqa", vision={"num_hidden_layers": 3}, vision_feature_layer=[1, -1])
CONFIG.text_config.num_hidden_layers = 3
IDS, PIXELS = tiny.prompt(CONFIG, [5, 4, 6]), tiny.pixels(CONFIG, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tower")
    tiny.model(CONFIG).save_pretrained(path)
    return path


def load(folder, monkeypatch, name, compression):
    """As on a machine whose devices are of this platform."""
    monkeypatch.setattr(vlm, "module_for", functools.partial(made_for, name))
    order = platform.weight_format
    monkeypatch.setattr(platform, "weight_format", lambda path, sharding, _: order(path, sharding, name))
    return victor_jax.load(folder, compression, dtype="float32")


def made_for(name, config, method, dtype, attention, _):
    return platform.module_for(config, method, dtype, attention, name)


@pytest.mark.parametrize("name", ["gpu", "tpu"])
@pytest.mark.parametrize("compression", ["full", "vtw:layer=2", "fastv:keep=3"])
def test_every_platform_gives_the_same_answers(folder, monkeypatch, name, compression):
    plain = victor_jax.load(folder, compression, dtype="float32")
    other = load(folder, monkeypatch, name, compression)
    assert other.module != plain.module
    np.testing.assert_allclose(other.logits(IDS, PIXELS), plain.logits(IDS, PIXELS), atol=1e-5, rtol=0)
    expected = plain.generate_ids(IDS, PIXELS, max_new_tokens=STEPS)
    np.testing.assert_array_equal(other.generate_ids(IDS, PIXELS, max_new_tokens=STEPS), expected)
    same = layers_of(plain.params, plain.module)
    assert layers_of(other.params, other.module).keys() == same.keys()
    for path, tensor in layers_of(other.params, other.module).items():
        np.testing.assert_array_equal(tensor.load(), same[path].load(), err_msg=path)


def test_on_a_gpu_each_layer_has_arrays_of_its_own(folder, monkeypatch):
    vlm = load(folder, monkeypatch, "gpu", "vtw:layer=2")
    stacks = {path: leaf.shape[0] for path, leaf in vlm.params.items() if "/stages_" in path}
    assert set(stacks.values()) == {1}
    assert {"language/stages_0_1/mlp/up/kernel", "language/stages_1_0/mlp/up/kernel"} <= stacks.keys()


def test_on_a_tpu_weights_are_in_the_order_of_decoding(folder, monkeypatch):
    vlm = load(folder, monkeypatch, "tpu", "full")
    order = {path: leaf.format.layout.major_to_minor for path, leaf in vlm.params.items()}
    assert order["language/stages_0_0/attention/q/kernel"] == (0, 2, 1)
    assert order["language/head"] == (1, 0)
    assert order["language/stages_0_0/attention/o/kernel"] == (0, 1, 2)
