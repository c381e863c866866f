"""Small checkpoints as Hugging Face writes them; modules that use them are skipped where torch is not installed."""

import shutil
from pathlib import Path

import pytest

import victor_jax


@pytest.fixture(scope="module")
def layouts():
    """Imported late: it takes torch."""
    import layouts

    return layouts


@pytest.fixture(scope="module")
def net(layouts):
    return layouts.model()


@pytest.fixture(scope="module")
def whole(layouts, net, tmp_path_factory):
    return layouts.hf(tmp_path_factory.mktemp("whole"), net)


@pytest.fixture
def hf(whole, tmp_path):
    """A folder to damage."""
    return Path(shutil.copytree(whole, tmp_path / "hf"))


@pytest.fixture
def sharded(layouts, net, tmp_path):
    layouts.write_config(tmp_path / "hf", net.config.to_dict())
    layouts.write_safetensors(tmp_path / "hf", layouts.state(net, "4.x on disk"), shards=3)
    return tmp_path / "hf"


@pytest.fixture(scope="module")
def clip(layouts, net, tmp_path_factory):
    return layouts.clip(tmp_path_factory.mktemp("clip"), net)


@pytest.fixture(scope="module")
def language_model(layouts, net, tmp_path_factory):
    return layouts.language_model(tmp_path_factory.mktemp("language"), net)


@pytest.fixture(scope="module")
def vlm(whole):
    return victor_jax.load(whole, dtype="float32")
