"""The compile cache, on by default: a second start of the same programs compiles nothing."""

import os
from pathlib import Path

import jax

ASKED = "JAX_COMPILATION_CACHE_DIR"  # jax reads it itself; set to nothing: no cache


def use_compile_cache(shared: Path | None = None) -> None:
    """In the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where. For a program that runs over several
    processes: under `shared`, a folder that all of them see, since process 0 alone writes what all of them read.

    To be called when the processes have joined, and before anything is compiled.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        # XLA:CPU loses the order of collectives in a program that it reads from the cache (those in loops are no longer
        # ordered against those outside): the processes then wait for each other in different collectives.
        jax.config.update("jax_enable_compilation_cache", False)
        if os.environ.get(ASKED) and jax.process_index() == 0:
            print(f"{ASKED} is not used: on CPU, several processes cannot run what is read from it", flush=True)
    elif ASKED not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "victor_jax"
        folder = shared if shared is not None and jax.process_count() > 1 else home
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "compiled"))
