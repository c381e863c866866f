"""A made-up data set for smoke tests: coloured shapes in LLaVA's format, with a small tokenizer of its own."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from victor_jax.data.templates import VICUNA_SYSTEM
from victor_jax.files import new_folder

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 200), "yellow": (220, 200, 40)}
SHAPES = ("square", "circle")
SIZE = 56


def write_sample(folder: Path, rows: int = 96, seed: int = 0) -> Path:
    """data.json, images/ and tokenizer/ in `folder`, the same for the same seed; kept where it is already there."""
    if folder.exists():
        return folder
    rng = np.random.default_rng(seed)
    with new_folder(folder) as partial:
        (partial / "images").mkdir()
        data = [_row(partial / "images", number, rng) for number in range(rows)]
        (partial / "data.json").write_text(json.dumps(data, indent=1))
        _write_tokenizer(partial / "tokenizer", data)
    return folder


def _row(images: Path, number: int, rng: np.random.Generator) -> dict:
    """Every eighth row is text alone; the others ask one or two things of an image."""
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    if number % 8 == 7:
        a, b = rng.integers(1, 10, 2)
        return {"id": str(number), "conversations": _turns(f"What is {a} plus {b}?", f"{a + b}")}
    picture = Image.new("RGB", (SIZE, SIZE), (240, 240, 240))
    left, top = rng.integers(4, SIZE // 2, 2).tolist()
    draw = ImageDraw.Draw(picture)
    paint = draw.rectangle if shape == "square" else draw.ellipse
    paint((left, top, left + 20, top + 20), fill=COLOURS[colour])
    picture.save(images / f"{number}.png")
    asked = _turns("<image>\nWhat colour is the shape?", colour)
    if number % 2:
        asked += _turns("What shape is it?", f"It is a {shape}.")
    return {"id": str(number), "image": f"{number}.png", "conversations": asked}


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _write_tokenizer(folder: Path, data: list[dict]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [VICUNA_SYSTEM] * 8 + [turn["value"] for row in data for turn in row["conversations"]]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
