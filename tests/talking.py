"""A small model of random weights that reads and writes text: a checkpoint folder of ours with a tokenizer in it."""

from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers_tiny import write_sentencepiece

from victor_jax.compression.spec import parse
from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import Rope
from victor_jax.prompt import Prompt
from victor_jax.weights.checkpoint import Checkpoint, expected, own_parameters
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

VOCABULARY = 448  # the small tokenizers have 400 and a few
CONFIG = VLMConfig(
    vision=VisionConfig(32, 48, 2, 2, 12, 4, "quick_gelu", 1e-5),
    projector=ProjectorConfig("mlp", bias=True),
    language=LanguageConfig(
        family="llama",
        width=64,
        mlp_width=96,
        depth=4,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocabulary=VOCABULARY,
        norm_eps=1e-5,
        rope=Rope(10000.0),
        qkv_bias=False,
        tied_embeddings=False,
        sliding_window=None,
        max_positions=1024,
    ),
    feature_levels=(1,),
    keep_class_token=False,
    image_token=VOCABULARY,
    pad_token=0,
    end_tokens=(2,),
)


def checkpoint(folder, compression="full", prompt=None, config=CONFIG, seed=0):
    """Weights large enough that logits are of order 1; `folder` is where tokenizer files lie."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in (expected(config) | own_parameters(config, parse(compression, config))).items():
        shape = leaf.shape
        scale = 1.2 * shape[0] ** -0.5 if name.endswith(("kernel", "head")) else 1.0 if len(shape) == 2 else 0.1
        drawn = rng.normal(0, scale, shape) + name.endswith("scale")
        tensors[name] = from_array(drawn.astype(np.float32))
    return Checkpoint("memory", folder, config, tensors, compression, prompt=prompt or Prompt())


def saved(folder: Path, compression="full", prompt=None, to="orbax", tokenizer=None, config=CONFIG, seed=0):
    """`tokenizer`: one to save beside the weights; a SentencePiece one by default, False for none."""
    companions = folder.with_name(folder.name + "-tokenizer")
    companions.mkdir(parents=True)
    if tokenizer is None:
        write_sentencepiece(companions, legacy=True)
    elif tokenizer:
        tokenizer.save_pretrained(companions)
    write_checkpoint(checkpoint(companions, compression, prompt, config, seed), folder, to, lambda _: None)
    return folder


def picture(seed, width=20, height=14):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)
