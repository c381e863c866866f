import pytest

from examples.small_benchmarks import write_all


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of all benchmarks, a few questions each: to be read, not written."""
    write_all(folder := tmp_path_factory.mktemp("small_benchmarks"))
    return folder
