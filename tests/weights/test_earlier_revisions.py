"""Checkpoints that earlier revisions wrote (tests/fixtures): the same tensors, logits and training state today."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import victor_jax
from victor_jax.training.checkpoints import Checkpoints
from victor_jax.training.optimizer import make_optimizer
from victor_jax.training.settings import OptimizerSettings
from victor_jax.training.step import State
from victor_jax.weights.read import open_checkpoint

V1 = Path(__file__).parents[1] / "fixtures" / "v1"
FORMATS = ("hf", "llava", "orbax")


def arrays(file):
    with np.load(V1 / file) as held:
        return dict(held)


def by_todays_names(held, registers):
    """By path; `registers` are the keys under which version 1 kept them."""
    todays = {key: f"{key.removesuffix('registers')}compression.registers" for key in registers}
    return {todays.get(key, key).replace(".", "/"): array for key, array in held.items()}


@pytest.mark.parametrize("format", FORMATS)
def test_a_checkpoint_of_version_1_holds_the_same_tensors(format):
    expected = by_todays_names(arrays("tensors.npz"), ["registers"])
    checkpoint = open_checkpoint(V1 / format)
    assert checkpoint.format == format
    assert checkpoint.compression == "victor:registers=2,layer=1"
    assert (checkpoint.prompt.template, checkpoint.prompt.aspect) == ("vicuna_v1", "square")
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.load(), expected[name], err_msg=name)


@pytest.mark.parametrize("format", FORMATS)
def test_a_checkpoint_of_version_1_gives_the_same_logits(format):
    expected = arrays("logits.npz")
    logits = victor_jax.load(V1 / format, dtype="float32").logits(expected["input_ids"], expected["pixel_values"])
    # As close as every parity test asks: attention multiplies in another order than it did then.
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=0)


def test_a_run_of_version_1_goes_on_from_its_checkpoint(tmp_path):
    moments = [f"optimizer.optimizer.1.{moment}.registers" for moment in ("mu", "nu")]
    held = by_todays_names(arrays("run.npz"), ["params.registers", *moments])
    params = {path.removeprefix("params/"): leaf for path, leaf in held.items() if path.startswith("params/")}
    settings = OptimizerSettings(2e-5, 0.0, 0.03, True, 0.0, 0.9, 0.999, 1e-8, 1.0, "float32")
    train = {path: jnp.zeros_like(leaf) for path, leaf in params.items()}
    blank = State(train, make_optimizer(settings, train).init(train), jnp.zeros((), jnp.float32))
    shutil.copytree(V1 / "run", tmp_path / "run")  # opening a folder of checkpoints writes to it
    with Checkpoints(tmp_path / "run", keep_last=1) as checkpoints:
        assert checkpoints.meta(4)["compression"] == "victor:registers=2,layer=1"
        state = checkpoints.restore(4, blank)
    leaves = jax.tree.leaves_with_path({"optimizer": state.optimizer, "loss_average": state.loss_average})
    found = {f"optimizer/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf for path, leaf in leaves}
    found |= {f"params/{path}": leaf for path, leaf in state.train.items()}
    assert found.keys() == held.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, held[path], err_msg=path)
