"""The README's ten lines are run as they stand, on a tiny checkpoint that Hugging Face's classes saved."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the tiny models are built by Hugging Face on torch")

import tiny  # noqa: E402
import tokenizers_tiny  # noqa: E402
import transformers  # noqa: E402

from victor_jax import cli  # noqa: E402

README = Path(__file__).parents[1] / "README.md"


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S) if containing in text]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def checkpoint(tmp_path):
    """llava-1.5-7b-hf in small, with its processor, and a picture."""
    tokenizer = tokenizers_tiny.sentencepiece_tokenizer(legacy=False)
    tokenizer.add_tokens(transformers.AddedToken("<image>", special=True, normalized=False), special_tokens=True)
    config = tiny.config()
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.num_hidden_layers = 17  # the README cuts at layer 16
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    folder = tmp_path / "llava-1.5-7b-hf"
    tiny.model(config).save_pretrained(folder)
    size = config.vision_config.image_size
    transformers.LlavaProcessor(
        tokenizer=tokenizer,
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "cat.jpg")
    return tmp_path


def test_the_ten_lines(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    name, *arguments = shlex.split(block("sh", "llava-1.5-7b-orbax"))
    assert name == "victor-jax"
    assert cli.main(arguments) == 0
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}  # to compile
    done = subprocess.run(
        [sys.executable, "-c", block("python", "victor_jax.load")],
        env={"PATH": "", "PYTHONPATH": str(README.parent), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", **quick},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
