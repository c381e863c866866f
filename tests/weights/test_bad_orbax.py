"""A damaged folder of our own format ends in one sentence that names the file."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

from damage import refused, truncate
from layouts import change_config

from victor_jax.cli.convert import convert
from victor_jax.weights.read import open_checkpoint


@pytest.fixture(scope="module")
def whole_orbax(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "ours"
    convert(whole, folder, "orbax")
    return folder


@pytest.fixture
def ours(whole_orbax, tmp_path):
    return Path(shutil.copytree(whole_orbax, tmp_path / "ours"))


def load_all(folder):
    for tensor in open_checkpoint(folder).tensors.values():
        tensor.load()


def data_file(folder):
    """The largest file: arrays lie in it."""
    return max(
        (file for file in (folder / "params").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: data_file(folder).unlink(),
        lambda folder: truncate(data_file(folder), by=data_file(folder).stat().st_size // 2),
        lambda folder: (folder / "params" / "_METADATA").unlink(),
        lambda folder: (folder / "params" / "_METADATA").write_text("{"),
        lambda folder: (folder / "params" / "manifest.ocdbt").unlink(),
        lambda folder: shutil.rmtree(folder / "params"),
    ],
    ids=["no data", "half the data", "no metadata", "half the metadata", "no manifest", "no params"],
)
def test_an_incomplete_orbax_folder(damage, ours):
    damage(ours)
    with refused(r"ours/params"):
        load_all(ours)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda raw: raw.update(version=9), r"ours/config.json has version 9, this release reads version 1"),
        (lambda raw: raw.update(architecture=[1]), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw.pop("architecture"), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw["architecture"]["language"].pop("depth"), r"ours/config.json does not describe a model"),
        (lambda raw: raw.pop("compression"), r"ours/config.json does not describe a model of ours"),
        (lambda raw: raw["architecture"]["language"].update(depth=5), r"ours lacks language/layers/4/"),
    ],
    ids=["version", "a list", "architecture", "depth", "compression", "another depth"],
)
def test_a_config_of_ours_that_cannot_be_read(change, pattern, ours):
    change_config(ours, change)
    with refused(pattern):
        open_checkpoint(ours)
