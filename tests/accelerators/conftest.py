"""Programs for devices that are not there. `make accelerators` runs these tests where the compilers are installed, each
platform in a process of its own."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compiled_as_users_compile():
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_exec_time_optimization_effort", -1.0)  # several times faster for a TPU, nothing for a GPU
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_exec_time_optimization_effort", 0.0)
