"""A data folder in LLaVA's own format, small and made up, with rows of every kind."""

import json

import numpy as np
from PIL import Image
from tokenizers_tiny import sentencepiece_tokenizer

from victor_jax.data.index import build_index
from victor_jax.data.labels import Reader
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES

TOKENS_PER_IMAGE = 9
SIZE = 12


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def image_row(path, words, seed=0):
    return {"image": path, "conversations": turns("<image>\nWhat is in the picture?", "cat " * words)}


def text_row(words):
    return {"conversations": turns("Is the light on?", "yes " * words)}


def rows_of_every_kind(count=40, seed=0):
    """A quarter text only; one row with two images; lengths from a few to a hundred tokens."""
    rng = np.random.default_rng(seed)
    rows = [
        text_row(int(rng.integers(1, 60))) if i % 4 == 3 else image_row(f"{i}.png", int(rng.integers(1, 90)))
        for i in range(count)
    ]
    rows[1] = {"image": ["0.png", "2.png"], "conversations": turns("<image> and <image>: which is red?", "the first")}
    return rows


def write(folder, rows):
    """Writes data.json, and an image for every path that ends in .png."""
    for row in rows:
        paths = row.get("image", [])
        for path in [paths] if isinstance(paths, str) else paths:
            if path.endswith(".png"):
                shade = sum(path.encode()) % 200
                Image.new("RGB", (20, 14), (shade, 255 - shade, 40)).save(folder / path)
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def reader(folder, rows, template="vicuna_v1", max_length=400):
    records = open_source(write(folder, rows), folder)
    return Reader(records, TEMPLATES[template], sentencepiece_tokenizer(False), TOKENS_PER_IMAGE, max_length)


def opened(folder, rows, **changes):
    """reader, index."""
    its = reader(folder, rows, **changes)
    return its, build_index(its, 0, progress=False)
