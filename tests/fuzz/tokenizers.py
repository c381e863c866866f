"""Files of tokenizers. What is taken encodes a prompt, and decodes what it has encoded."""

import json
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from talking import CONFIG

from fuzz import models
from fuzz.property import REFUSALS, Surface
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps
from victor_jax.inference.prompts import open_prompter
from victor_jax.prompt import Prompt

FILES = (
    "fast/tokenizer.json",
    "fast/tokenizer_config.json",
    "talking/tokenizer_config.json",
    "talking/tokenizer.model",
)


@dataclass(frozen=True)
class File:
    name: str  # with its folder's
    changes: list[Change]
    damage: list[Damage]
    gone: str  # another file that is not there

    def data(self) -> bytes:
        folder, name = self.name.split("/")
        data = (models.folder(folder) / name).read_bytes()
        if self.changes and self.name.endswith(".json"):
            data = dumps(changed(json.loads(data), self.changes)).encode("utf-8", "surrogatepass")
        return damaged(data, self.damage)


class Tokenizers(Surface):
    name, short = "tokenizers", 40
    seconds = 10.0
    inputs = st.builds(
        File,
        st.sampled_from(FILES),
        st.one_of(changes, st.just([])),
        st.one_of(st.just([]), damages),
        st.sampled_from(("", "", "", *FILES)),
    )

    def prepare(self, given, room):
        folder, name = given.name.split("/")
        copy = models.copied(folder, room, name)
        (copy / name).write_bytes(given.data())
        if given.gone.startswith(folder):
            (room / given.gone).unlink()
        return copy

    def attempt(self, prepared, room):
        prompter = open_prompter(prepared, Prompt(), CONFIG, 9)
        rows = prompter.ask(["What is it?", "名 <image> \n\0"], [None, "absent.png"])
        return [prompter.text(row.ids[row.ids >= 0]) for row in rows], prompter.end_tokens

    def compare(self, prepared, result):
        if not isinstance(result, REFUSALS):
            texts, ends = result
            assert all(isinstance(text, str) for text in texts)
            assert np.array(ends).dtype.kind == "i"
