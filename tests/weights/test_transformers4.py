"""What we write loads in transformers 4.x too, tensor by tensor and logit by logit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import tiny  # noqa: E402

import victor_jax  # noqa: E402

OLD = Path(__file__).parents[2] / ".transformers4"
LANGUAGES = ("llama3", "mistral_window", "qwen2_tied")

ASK = """
import sys
from pathlib import Path
import numpy as np, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
for folder in map(Path, sys.argv[1:]):
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    given = np.load(folder.parent / "inputs.npz")
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(given["ids"]), pixel_values=torch.tensor(given["pixels"])).logits
    np.save(folder.parent / "theirs.npy", logits.numpy())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder per language: its export, the inputs, the logits of both. Transformers 4 starts once for all."""
    root = tmp_path_factory.mktemp("exports")
    for language in LANGUAGES:
        folder, config = root / language, tiny.config(language)
        vlm = victor_jax.load(tiny.saved(folder / "source", language), dtype="float32")
        vlm.save(folder / "export", format="hf")
        ids, pixels = tiny.prompt(config, [5, 7]), tiny.pixels(config, 1)
        np.savez(folder / "inputs.npz", ids=ids, pixels=pixels)
        np.save(folder / "ours.npy", vlm.logits(ids, pixels))
    done = subprocess.run(
        [sys.executable, "-c", ASK, *(str(root / language / "export") for language in LANGUAGES)],
        env={**os.environ, "PYTHONPATH": str(OLD)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root


@pytest.mark.skipif(not OLD.exists(), reason="no .transformers4: `make test` installs it")
@pytest.mark.parametrize("language", LANGUAGES)
def test_an_export_loads_in_transformers_4(root, language):
    ours, theirs = (np.load(root / language / f"{side}.npy")[0] for side in ("ours", "theirs"))
    is_text = np.load(root / language / "inputs.npz")["ids"][0] != tiny.IMAGE_TOKEN
    np.testing.assert_allclose(ours, theirs[is_text], atol=1e-5, rtol=0)
