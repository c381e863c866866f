"""Where compiled programs are kept: for one process, and for several that share a folder."""

from pathlib import Path

import jax
import pytest

from victor_jax.compile_cache import use_compile_cache


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """What jax is told where so many processes run on this platform; None: nothing."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)

    def ask(processes: int, platform: str) -> dict:
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        use_compile_cache(shared=tmp_path / "run")
        return told

    return ask


def test_one_process_keeps_its_programs_in_the_users_cache(chosen, tmp_path):
    assert chosen(1, "cpu") == {"jax_compilation_cache_dir": str(tmp_path / "home" / "victor_jax" / "compiled")}


def test_several_processes_keep_them_in_the_folder_that_they_share(chosen, tmp_path):
    assert chosen(4, "tpu") == {"jax_compilation_cache_dir": str(tmp_path / "run" / "compiled")}


@pytest.mark.parametrize("wanted", ["", str(Path("elsewhere"))])
def test_the_environment_decides(chosen, monkeypatch, wanted):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", wanted)
    assert chosen(4, "gpu") == {}
