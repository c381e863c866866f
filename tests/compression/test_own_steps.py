"""A method may bring steps and parameters of its own: here one that reads the parked image, made up in this file.

Nothing outside knows it, and it is prefilled, decoded, trained, saved beside every format and loaded.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import talking

import victor_jax
from victor_jax.compression import spec
from victor_jax.compression.plan import Kind, Layers, Method, Plan
from victor_jax.compression.steps import Leave
from victor_jax.inference import programs
from victor_jax.models.layers import Dense
from victor_jax.models.vlm import VLMModule


@dataclass(frozen=True)
class Read:
    """Every position adds a learned map of the mean of the parked positions; new tokens do as well."""

    def after(self, stream, parked):
        return stream, parked

    def apply(self, flow, size, own):
        is_real = (flow.parked.kinds != Kind.PADDING)[..., None]
        mean = (flow.parked.x * is_real).sum(axis=1, keepdims=True) / jnp.maximum(is_real.sum(axis=1, keepdims=True), 1)
        added = own(mean)
        return replace(flow, stream=replace(flow.stream, x=flow.stream.x + added)), added

    def decode(self, x, kept, own):
        return x + kept


class Reader(nn.Module):
    width: int
    dtype: object

    @nn.compact
    def __call__(self, x):
        return Dense(self.width, True, self.dtype, start="torch", name="read")(x)


def own(config, dtype, implementation) -> nn.Module:
    return Reader(config.language.width, dtype)


def reading(config, layer: int) -> Method:
    steps = (Leave(Kind.VISUAL, park=True), Layers(layer), Read(), Layers(config.language.depth - layer))
    return Method(Plan(steps), registers=1, own=own)


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spec.METHODS, "reading", reading)
        yield


OWN = {"compression/registers", "compression/steps/read/kernel", "compression/steps/read/bias"}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = talking.saved(tmp_path_factory.mktemp("model") / "saved")
    return victor_jax.load(folder, "reading:layer=1", "float32", seed=0)


def test_its_parameters_stand_under_one_name(vlm):
    assert {path for path in vlm.params if path.startswith("compression/")} == OWN


def test_prefill_and_decode_equal_a_full_pass(vlm):
    ids = np.array([[5, *[talking.CONFIG.image_token] * talking.CONFIG.features_per_image, 6, 7]])
    size = talking.CONFIG.vision.image_size
    pixels, other = (np.random.default_rng(seed).normal(size=(1, 3, size, size)).astype(np.float32) for seed in (0, 1))
    batch, shape = vlm._from_arrays(ids, pixels, None)
    logits, caches = vlm.call(programs.prefill, batch, vlm.sizes(shape), room=3)
    decode = jax.jit(partial(vlm.module.apply, method=VLMModule.decode))
    for step in range(3):
        np.testing.assert_allclose(logits[0], vlm.logits(ids, pixels)[0, -1], atol=1e-5)
        token = np.array([9 + step])
        ids = np.concatenate([ids, token[None]], axis=1)
        logits, caches = decode({"params": vlm._tree}, token, caches, np.int32(step))
    assert np.abs(vlm.logits(ids, pixels)[0, -1] - vlm.logits(ids, other)[0, -1]).max() > 1e-3


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
def test_it_is_saved_beside_every_format_and_loaded(vlm, to, tmp_path):
    vlm.save(tmp_path / to, format=to)
    loaded = victor_jax.load(tmp_path / to, dtype="float32")
    assert loaded.compression == "reading:layer=1"
    for path in OWN:
        np.testing.assert_array_equal(loaded.params[path], vlm.params[path])


def test_it_trains_in_stage_1_with_the_projector_alone(tmp_path):
    start, data = small_run.write_start(tmp_path / "start"), small_run.write_data(tmp_path / "data")
    changes = small_run.overrides(start, data, compression="reading:layer=1", total_steps=2, checkpoint__every=2)
    small_run.run_here(tmp_path / "run", changes, recipe="pretrain")
    before, after = (
        victor_jax.load(start, "full", "float32"),
        victor_jax.load(tmp_path / "run" / "model", None, "float32"),
    )
    assert after.compression == "reading:layer=1"
    for path, leaf in after.params.items():
        if path in OWN:
            assert np.ptp(np.asarray(leaf)) > 0, path
        elif path.startswith("vision/") or path == "language/embedding":
            np.testing.assert_array_equal(leaf, before.params[path])
