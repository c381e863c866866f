"""The README of a checkpoint that we write: what it is, and which programs run it as it was trained."""

import re
import shutil
from pathlib import Path

from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.folder import SIDE_CONFIG, SIDE_WEIGHTS
from victor_jax.weights.fresh import described

README = "README.md"
BASE_README = "README.base.md"  # the one that came with the checkpoint
LIBRARY = "library_name: victor_jax"  # marks the READMEs that are ours
CACHED = re.compile(r"models--(?P<organisation>[^/]+?)--(?P<name>[^/]+)")  # a folder of the Hub's cache
PROGRAMS = {"hf": "transformers", "llava": "LLaVA's own code"}
LAYOUTS = {"hf": "Hugging Face's LLaVA", "llava": "the original LLaVA"}


def write_readme(folder: Path, checkpoint: Checkpoint, to: str, name: str) -> None:
    """Beside the files of the layout `to`; `name` is what `load` is given."""
    base = f"\n[{BASE_README}]({BASE_README}) is that of the model it was made from.\n"
    text = model_card(checkpoint, to, name) + base * (folder / BASE_README).exists()
    (folder / README).write_text(text, encoding="utf-8")


def keep_base_readme(source: Path, folder: Path) -> None:
    """Takes the README along that the model came with, under another name: it does not describe what becomes of it."""
    for file in (source / BASE_README, source / README):
        if file.is_file() and LIBRARY not in file.read_text("utf-8", errors="replace"):
            shutil.copyfile(file, folder / BASE_README)
            return


def model_card(checkpoint: Checkpoint, to: str, name: str) -> str:
    language, compression = checkpoint.config.language, checkpoint.compression
    base = CACHED.search(str(checkpoint.folder))
    named = f"base_model: {base['organisation']}/{base['name']}\n" if base else ""
    learned = described(checkpoint.own)
    return f"""---
{LIBRARY}
pipeline_tag: image-text-to-text
{named}tags:
- llava
- victor
---
# {Path(name).name}

A vision-language model in the layout of {LAYOUTS[to]}: CLIP with images of {checkpoint.config.vision.image_size}
pixels and a language model of the family {language.family} with {language.depth} layers.

| | |
|---|---|
| compression | `{compression}` ({learned or "without parameters of its own"}) |
| chat template | `{checkpoint.prompt.template}` |
| weights | {checkpoint.nbytes / 1e9:.2f} GB, {checkpoint.dtype} |

```python
import victor_jax

vlm = victor_jax.load("{name}")
print(vlm.generate(["What is in the picture?"], ["picture.jpg"]))
```
{_what_runs(compression, learned, to)}"""


def _what_runs(compression: str, learned: str, to: str) -> str:
    if compression == "full":
        return f"\nNothing is compressed: {PROGRAMS[to]} runs the same model.\n"
    side = f"`{SIDE_CONFIG}` and `{SIDE_WEIGHTS}`" if learned else f"`{SIDE_CONFIG}`"
    without = f" and without its {learned}" if learned else ""
    return f"""
**{PROGRAMS[to]} does not know the compression.** It loads this folder without an error, as a full LLaVA: every visual
token through every layer{without}.
That is not the model as it was trained, and it is not faster. The compression is in {side},
which only victor_jax reads.
"""
