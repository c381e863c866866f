"""Programs for devices that are not there. `make accelerators` runs these tests where the compilers are installed, each
platform in a process of its own."""

import jax
import pytest

EFFORT = "jax_exec_time_optimization_effort"  # in jax 0.10: several times faster for a TPU, nothing for a GPU


@pytest.fixture(scope="package", autouse=True)
def compiled_as_users_compile():
    has_effort = EFFORT in jax.config.values
    jax.config.update("jax_disable_most_optimizations", False)
    if has_effort:
        jax.config.update(EFFORT, -1.0)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    if has_effort:
        jax.config.update(EFFORT, 0.0)
