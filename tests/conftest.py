import gc
import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if version("jaxlib").startswith("0.10."):  # which still has XLA's older emitters
    # They compile the small programs of tests in half the time, and in one piece each in less. Children get this too.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile far more than they compute: without XLA's costly passes they take half the time. What the programs
# mean is the same, and that is what is tested; benchmarks compile as users do.
jax.config.update("jax_disable_most_optimizations", True)

gc.set_threshold(100_000, 50, 100)  # tracing makes many objects, which the defaults look through again and again


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Linux allows a process 65,530 memory maps, of which every compiled program takes some: all tests in one process
    would come close to them, and XLA dies of a signal where it gets no more."""
    yield
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    """The longest module first, so that at the end no worker waits for another one (--no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name != "test_train_processes.py")
