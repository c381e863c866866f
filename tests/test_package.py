"""What `pip install .` installs: every package, the marker of types, the command; neither tests nor benchmarks."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import victor_jax

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by this environment's setuptools, from a copy: nothing is fetched, nothing is left in the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("victor_jax", "tests", "benchmarks", "examples", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def test_every_module_is_in_it_and_nothing_else(wheel):
    source = {file.relative_to(ROOT).as_posix() for file in (ROOT / "victor_jax").rglob("*.py")}
    installed = {name for name in wheel if ".dist-info/" not in name}
    assert installed == source | {"victor_jax/py.typed"}


def test_it_brings_the_command_the_version_and_the_licence(wheel):
    metadata = {name.partition("/")[2]: text for name, text in wheel.items() if ".dist-info/" in name}
    assert "victor-jax = victor_jax.cli:main" in metadata["entry_points.txt"]
    assert f"\nVersion: {victor_jax.__version__}\n" in metadata["METADATA"]
    assert "Apache License" in metadata["licenses/LICENSE"]


def test_lmms_eval_finds_the_models_and_is_not_needed_before(wheel):
    listed = next(text for name, text in wheel.items() if name.endswith("entry_points.txt")).splitlines()
    value = listed[listed.index("[lmms_eval.models]") + 1].partition(" = ")[2]
    assert callable(EntryPoint("victor_jax", value, "lmms_eval.models").load())
    assert "lmms_eval" not in sys.modules


def test_it_asks_for_what_requirements_txt_lists(wheel):
    metadata = next(text for name, text in wheel.items() if name.endswith("METADATA"))
    asked = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    needed = {one.replace(" ", "") for one in asked if "extra" not in one}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert len(needed) == len([line for line in lines if line and not line.startswith("#")])
    assert any(one.startswith("jax") and "<0.13" in one for one in needed)
    for extra in ("cuda", "tpu", "quickstart", "data"):
        assert f"Provides-Extra: {extra}" in metadata
