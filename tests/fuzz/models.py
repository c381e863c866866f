"""Small checkpoint folders that several surfaces damage, made once."""

import functools
import shutil
import tempfile
from pathlib import Path

import layouts
import talking
from tokenizers_tiny import sentencepiece_tokenizer

import victor_jax
from victor_jax.inference.vlm import VLM


@functools.cache
def home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz-models-")


@functools.cache
def folder(layout: str) -> Path:
    """`hf`, `llava`, `orbax`; with a tokenizer and registers: `talking` (SentencePiece's file) and `fast` (JSON)."""
    place = Path(home().name) / layout
    match layout:
        case "hf":
            return layouts.hf(place, layouts.model())
        case "llava":
            return layouts.original(place, layouts.model())
        case "orbax":
            return talking.saved(place, "victor:registers=3,layer=2", tokenizer=False)
        case "fast":
            return talking.saved(place, "victor:registers=3,layer=2", tokenizer=sentencepiece_tokenizer(False))
        case _:
            return talking.saved(place, "victor:registers=3,layer=2")


def copied(layout: str, room: Path, *changed: str) -> Path:
    """The folder to damage: its files are links, but for those that will be changed."""
    copy = room / layout
    copy.mkdir()
    for file in folder(layout).iterdir():
        if file.name in changed:
            shutil.copyfile(file, copy / file.name)
        else:
            (copy / file.name).symlink_to(file)
    return copy


@functools.cache
def vlm() -> VLM:
    return victor_jax.load(folder("talking"), dtype="float32")
