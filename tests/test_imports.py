"""What a benchmark needs imports only jax, flax, optax and numpy; `import victor_jax` pulls in nothing."""

import subprocess
import sys

BLOCKED = [
    "grain",
    "ml_collections",
    "orbax",
    "tensorstore",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "PIL",
    "torch",
    "tqdm",
    "pyarrow",
]
BENCHMARKED = [
    "victor_jax.ops.attention",
    "victor_jax.models.vlm",
    "victor_jax.models.sizes",
    "victor_jax.compression.spec",
    "victor_jax.sharding.mesh",
    "victor_jax.models.sequence",
    "victor_jax.inference.programs",
    "victor_jax.training.step",
]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_model_code_needs_no_data_or_checkpoint_library():
    block = "".join(f"sys.modules[{name!r}] = None; " for name in BLOCKED)
    done = run(f"import sys; {block}import {', '.join(BENCHMARKED)}")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_costs_nothing():
    done = run(
        "import sys; before = set(sys.modules); import victor_jax; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert done.returncode == 0, done.stderr
    assert not {"jax", "flax", "numpy", *BLOCKED} & set(done.stdout.split())
