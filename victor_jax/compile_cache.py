"""The compile cache, on by default: a second start of the same programs compiles nothing."""

import os
from pathlib import Path

import jax


def use_compile_cache() -> None:
    """In the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where; set that to nothing for none."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "victor_jax" / "compiled"))
