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

ASK = """
import sys
import numpy as np, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
folder = sys.argv[1]
model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
given = np.load(folder + "/../inputs.npz")
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor(given["ids"]), pixel_values=torch.tensor(given["pixels"])).logits
np.save(folder + "/../logits.npy", logits.numpy())
"""


@pytest.mark.skipif(not OLD.exists(), reason="no .transformers4: `make test` installs it")
@pytest.mark.parametrize("language", ["llama3", "mistral_window", "qwen2_tied"])
def test_an_export_loads_in_transformers_4(tmp_path, language):
    config = tiny.config(language)
    vlm = victor_jax.load(tiny.saved(tmp_path / "source", language), dtype="float32")
    vlm.save(tmp_path / "export", format="hf")
    ids, pixels = tiny.prompt(config, [5, 7]), tiny.pixels(config, 1)
    np.savez(tmp_path / "inputs.npz", ids=ids, pixels=pixels)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "export")],
        env={**os.environ, "PYTHONPATH": str(OLD)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "logits.npy")[0, ids[0] != tiny.IMAGE_TOKEN]
    np.testing.assert_allclose(vlm.logits(ids, pixels)[0], theirs, atol=1e-5, rtol=0)
