"""Every method on an accelerator that is there, against the CPU: JAX_PLATFORMS=cuda,cpu pytest tests/accelerators."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
import every
import field

if jax.default_backend() == "cpu":
    pytest.skip("no accelerator is here", allow_module_level=True)


@pytest.mark.parametrize("spec", every.SPECS.values())
def test_float32_is_the_same_as_on_the_cpu(spec):
    rows, images = field.unlike_rows(spec)
    here = field.logits(spec, rows, images)
    with jax.default_device(jax.devices("cpu")[0]):
        there = field.logits(spec, rows, images)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)
