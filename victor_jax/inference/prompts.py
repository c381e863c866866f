"""Strings and pictures -> the arrays that a model reads, prepared exactly as in training; and its tokens -> text."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from victor_jax.data.batches import build_batch
from victor_jax.data.images import BadImage, decode, normalise, preprocess
from victor_jax.data.labels import IGNORE, IMAGE, IMAGE_TEXT, Example, encode, encode_prompt
from victor_jax.data.records import BadRow, Record, Turn
from victor_jax.data.shapes import Shape
from victor_jax.data.templates import TEMPLATES, Template
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import Batch
from victor_jax.prompt import Prompt
from victor_jax.weights.tokenizer import FILES, has_tokenizer, open_tokenizer

Picture = Image.Image | str | Path
Pictures = Picture | Sequence[Picture] | None  # what goes with one prompt


@dataclass(frozen=True)
class Asked:
    """One prompt, ready to be read: `input_ids` holds IMAGE once for each picture."""

    input_ids: np.ndarray  # int32 [T]
    pictures: tuple[Picture, ...]
    targets: np.ndarray  # int32 [T]: the ids of an answer where they stand, IGNORE elsewhere


@dataclass(frozen=True)
class Arrays:
    """A batch in the convention of the Hugging Face processor."""

    input_ids: np.ndarray  # int32 [B, T], each image its placeholder repeated once per visual token
    pixel_values: np.ndarray | None  # float32 [images, 3, size, size], in reading order
    attention_mask: np.ndarray  # int32 [B, T], padding at the right


@dataclass(frozen=True)
class Prompter:
    """How one model is asked and understood."""

    tokenizer: Any
    template: Template
    aspect: str
    config: VLMConfig

    def ask(self, prompts: Sequence[str], images: Sequence[Pictures] | None) -> list[Asked]:
        """Everything is checked here except the pixels; no picture is opened."""
        return [self._asked(*of_one) for of_one in self._records(prompts, images)]

    def answer(self, prompts: Sequence[str], images: Sequence[Pictures] | None, answers: Sequence[str]) -> list[Asked]:
        """As `ask`, with the answer and its end token after each prompt."""
        records = self._records(prompts, images)
        if isinstance(answers, str) or len(answers) != len(records):
            raise UserError(f"{len(records)} prompts want {len(records)} answers, one for each")
        return [self._asked(*of_one, answer) for of_one, answer in zip(records, answers, strict=True)]

    def arrays(self, asked: Sequence[Asked]) -> Arrays:
        rows = [self._spread(one.input_ids) for one in asked]
        longest = max(len(row) for row in rows)
        input_ids, attention_mask = np.zeros((2, len(rows), longest), np.int32)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)], attention_mask[row, : len(ids)] = ids, 1
        pixels = [self.pixels(picture) for one in asked for picture in one.pictures]
        return Arrays(input_ids, normalise(np.stack(pixels)) if pixels else None, attention_mask)

    def _spread(self, ids: np.ndarray) -> np.ndarray:
        ids = np.repeat(ids, np.where(ids == IMAGE, self.config.tokens_per_image, 1))
        return np.where(ids == IMAGE, self.config.image_token, ids)

    def batch(self, asked: Sequence[Asked], registers: int) -> Batch:
        """A batch as training reads it, answers and all."""
        examples = [Example(one.input_ids, one.targets, ()) for one in asked]
        pixels = [np.stack([self.pixels(p) for p in one.pictures]) if one.pictures else None for one in asked]
        images = [len(one.pictures) for one in asked]
        text = max(len(one.input_ids) - count for one, count in zip(asked, images, strict=True))
        shape = Shape(text, max(images))
        size = self.config.vision.image_size
        return build_batch(examples, pixels, shape, self.config.tokens_per_image, registers, size)

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 [3, size, size]: what the vision tower sees of it, before it is normalised."""
        if not isinstance(picture, Image.Image):
            picture = open_picture(picture)
        return preprocess(picture, self.config.vision.image_size, self.aspect)  # type: ignore[arg-type]

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Where an answer ends: at the model's own tokens, and at the one that the template closes a turn with."""
        asked = Record(0, (), (Turn("human", "x"), Turn("assistant", "x")))
        targets = encode(asked, self.template, self.tokenizer).targets
        last = int(targets[targets != IGNORE][-1])
        closing = (last,) if last in self.tokenizer.all_special_ids else ()
        return tuple(dict.fromkeys((*self.config.end_tokens, *closing)))

    def text(self, tokens: np.ndarray) -> str:
        """New tokens of one row -> what was said, up to its end."""
        ends = np.flatnonzero(np.isin(tokens, self.end_tokens))
        said = tokens[: ends[0]] if len(ends) else tokens
        return self.tokenizer.decode(said.tolist(), skip_special_tokens=True).strip()

    def _records(
        self, prompts: Sequence[str], images: Sequence[Pictures] | None
    ) -> list[tuple[Record, tuple[Picture, ...]]]:
        if isinstance(prompts, str):
            raise UserError("prompts must be a list of texts, even if there is only one")
        if images is None:
            images = [None] * len(prompts)
        if isinstance(images, (str, Path, Image.Image)) or len(images) != len(prompts):
            raise UserError(
                f"{len(prompts)} prompts want {len(prompts)} entries in images, one for each: a picture, a list of "
                "pictures, or None"
            )
        return [
            self._record(number, prompt, _listed(pictures))
            for number, (prompt, pictures) in enumerate(zip(prompts, images, strict=True))
        ]

    def _record(self, number: int, prompt: str, pictures: tuple[Picture, ...]) -> tuple[Record, tuple[Picture, ...]]:
        if len(pictures) == 1 and IMAGE_TEXT not in prompt:
            prompt = f"{IMAGE_TEXT}\n{prompt}"
        if (places := prompt.count(IMAGE_TEXT)) != len(pictures):
            raise UserError(
                f"prompt {number} has {places} {IMAGE_TEXT} and {len(pictures)} images: write {IMAGE_TEXT} once for "
                "each"
            )
        return Record(number, tuple(str(at) for at in range(len(pictures))), (Turn("human", prompt),)), pictures

    def _asked(self, record: Record, pictures: tuple[Picture, ...], answer: str | None = None) -> Asked:
        try:
            if answer is None:
                ids = encode_prompt(record, self.template, self.tokenizer)
                targets = np.full_like(ids, IGNORE)
            else:
                turns = (*record.turns, Turn("assistant", answer))
                example = encode(Record(record.index, record.images, turns), self.template, self.tokenizer)
                ids, targets = example.input_ids, example.targets
        except BadRow as error:
            raise UserError(f"prompt {error.index}: {error.reason}") from None
        if int(ids.max()) >= self.config.language.vocabulary:
            raise UserError(
                f"the tokenizer gives token {int(ids.max())}, the model knows {self.config.language.vocabulary}: they "
                "do not belong together"
            )
        return Asked(ids, pictures, targets)


def open_prompter(folder: Path, prompt: Prompt, config: VLMConfig) -> Prompter:
    """From the tokenizer files beside a checkpoint. A template of captions cannot ask: vicuna_v1 stands in for it."""
    template = TEMPLATES[prompt.template]
    if template.captions:
        template = TEMPLATES["vicuna_v1"]
    return Prompter(_open_tokenizer(folder), template, prompt.aspect, config)


def _open_tokenizer(folder: Path) -> Any:
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} holds no tokenizer ({', '.join(FILES)}), which prompts of text need: copy the files "
            "of the language model's tokenizer there"
        )
    return open_tokenizer(folder)


def open_picture(path: str | Path) -> Image.Image:
    try:
        return decode(Path(path).read_bytes(), str(path))
    except (BadImage, OSError) as error:
        reason = error.reason if isinstance(error, BadImage) else error.strerror
        raise UserError(f"the image {path} cannot be used: {reason}") from None


def batches_of(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """Runs of `size`; after a first whole one, the last is filled up with its last row, so that no other program
    has to be compiled for it."""
    if size < 1:
        raise UserError(f"batch_size={size} must be at least 1")
    for start in range(0, len(asked), size):
        rows = list(asked[start : start + size])
        yield rows + rows[-1:] * (size - len(rows) if start else 0)


def _listed(pictures: Pictures) -> tuple[Picture, ...]:
    if pictures is None:
        return ()
    return (pictures,) if isinstance(pictures, (str, Path, Image.Image)) else tuple(pictures)
