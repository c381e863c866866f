"""Strings and pictures -> encoded rows, prepared exactly as in training; and new tokens -> text."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from victor_jax.data.batches import build_batch
from victor_jax.data.images import BadImage, decode, preprocess, read_file
from victor_jax.data.labels import IMAGE_TEXT, encode, encode_prompt
from victor_jax.data.records import BadRow, Record, Turn
from victor_jax.data.shapes import Shape
from victor_jax.data.templates import TEMPLATES, Template
from victor_jax.errors import UserError
from victor_jax.inference.buckets import picture_key
from victor_jax.inference.stops import stop_table
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import Batch, EncodedRow
from victor_jax.ops.losses import IGNORE
from victor_jax.prompt import Prompt
from victor_jax.weights.tokenizer import FILES, has_tokenizer, open_tokenizer

Picture = Image.Image | str | Path
Pictures = Picture | Sequence[Picture] | None  # what goes with one prompt


def open_picture(path: str | Path) -> Image.Image:
    try:
        return decode(read_file(Path(path)), str(path))
    except (BadImage, OSError) as error:
        reason = error.reason if isinstance(error, BadImage) else error.strerror
        raise UserError(f"the image {path} cannot be used: {reason}") from None


Open = Callable[[str | Path], Image.Image]


@dataclass(frozen=True)
class Prompter:
    """Encodes prompts, decodes answers."""

    tokenizer: Any
    template: Template
    aspect: str
    config: VLMConfig
    tokens_per_image: int

    def ask(self, prompts: Sequence[str], images: Sequence[Pictures] | None) -> list[EncodedRow]:
        """Everything is checked here except the pixels; no picture is opened."""
        return [self._encoded(record) for record in self._records(prompts, images)]

    def answer(
        self, prompts: Sequence[str], images: Sequence[Pictures] | None, answers: Sequence[str]
    ) -> list[EncodedRow]:
        """As `ask`, with the answer and its end token after each prompt, supervised."""
        records = self._records(prompts, images)
        _check_texts("answers", answers)
        if len(answers) != len(records):
            raise UserError(f"{len(records)} prompts want {len(records)} answers, one for each")
        return [self._encoded(record, answer) for record, answer in zip(records, answers, strict=True)]

    def batch(
        self,
        rows: Sequence[EncodedRow],
        registers: int,
        shape: Shape,
        places: int | None = None,
        open: Open = open_picture,
    ) -> Batch:
        """Opens the pictures, each once, and prepares everything as training does. `places`: the batch holds the pixels
        of so many different ones, and rows say which; None: it holds them for each image of each row."""
        size, different = self.config.vision.image_size, {picture_key(one): one for row in rows for one in row.images}
        read = [self.pixels(one, open) for one in different.values()]
        number = {key: place for place, key in enumerate(different)}
        shown = [[number[picture_key(one)] for one in row.images] for row in rows]
        if places is None:
            pixels = [np.stack([read[one] for one in of_row]) if of_row else None for of_row in shown]
            return build_batch(rows, pixels, registers, size, shape)
        held, pictures = np.zeros((places, 3, size, size), np.uint8), np.zeros((len(rows), shape.images), np.int32)
        held[: len(read)] = read
        for place, of_row in zip(pictures, shown, strict=True):
            place[: len(of_row)] = of_row
        return replace(build_batch(rows, None, registers, size, shape), pixels=held, pictures=pictures)

    def pixels(self, picture: Picture, open: Open = open_picture) -> np.ndarray:
        """uint8 [3, size, size]: what the vision tower sees of it, before it is normalised."""
        if not isinstance(picture, Image.Image):
            picture = open(picture)
        if not all(picture.size):
            raise UserError(f"a picture of {picture.width} x {picture.height} pixels shows nothing")
        return preprocess(picture, self.config.vision.image_size, self.aspect)  # type: ignore[arg-type]

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Where an answer ends: at the model's own tokens, and at the one that the template closes a turn with."""
        answered = Record(0, (), (Turn("human", "x"), Turn("assistant", "x")))
        targets = encode(answered, self.template, self.tokenizer, self.tokens_per_image).targets
        last = int(targets[targets != IGNORE][-1])
        closing = (last,) if last in self.tokenizer.all_special_ids else ()
        return tuple(dict.fromkeys((*self.config.end_tokens, *closing)))

    def text(self, tokens: np.ndarray, stop: Sequence[str] = ()) -> str:
        """New tokens of one row -> what was said, up to its end or the first stop string."""
        ends = np.flatnonzero(np.isin(tokens, self.end_tokens))
        said = tokens[: ends[0]] if len(ends) else tokens
        text = self.tokenizer.decode(said.tolist(), skip_special_tokens=True)
        return text[: min((text.index(one) for one in stop if one in text), default=None)].strip()

    def stops(self, stop: Any) -> np.ndarray | None:
        """The table of stop strings, None where there are none."""
        _check_texts("stop", stop)
        if "" in stop:
            raise UserError("stop holds an empty text, which would end every answer")
        return stop_table(self.tokenizer, tuple(stop), self.config.language.vocabulary) if stop else None

    def _records(self, prompts: Sequence[str], images: Sequence[Pictures] | None) -> list[Record]:
        _check_texts("prompts", prompts)
        if images is None:
            images = [None] * len(prompts)
        if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
            raise UserError(
                f"{len(prompts)} prompts want {len(prompts)} entries in images, one for each: a picture, a list of "
                "pictures, or None"
            )
        return [
            self._record(number, prompt, _listed(number, pictures))
            for number, (prompt, pictures) in enumerate(zip(prompts, images, strict=True))
        ]

    def _record(self, number: int, prompt: str, pictures: tuple[Picture, ...]) -> Record:
        if len(pictures) == 1 and IMAGE_TEXT not in prompt:
            prompt = f"{IMAGE_TEXT}\n{prompt}"
        if (places := prompt.count(IMAGE_TEXT)) != len(pictures):
            raise UserError(
                f"prompt {number} has {places} {IMAGE_TEXT} and {len(pictures)} images: write {IMAGE_TEXT} once for "
                "each"
            )
        return Record(number, pictures, (Turn("human", prompt),))

    def _encoded(self, record: Record, answer: str | None = None) -> EncodedRow:
        template, tokenizer, tokens = self.template, self.tokenizer, self.tokens_per_image
        try:
            if answer is None:
                row = encode_prompt(record, template, tokenizer, tokens)
            else:
                record = replace(record, turns=(*record.turns, Turn("assistant", answer)))
                row = encode(record, template, tokenizer, tokens)
        except BadRow as error:
            raise UserError(f"prompt {error.index}: {error.reason}") from None
        if int(row.ids.max()) >= self.config.language.vocabulary:
            raise UserError(
                f"the tokenizer gives token {int(row.ids.max())}, the model knows {self.config.language.vocabulary}: "
                "they do not belong together"
            )
        return row


def open_prompter(folder: Path, prompt: Prompt, config: VLMConfig, tokens_per_image: int) -> Prompter:
    """From the tokenizer files beside a checkpoint. Where the template is for captions, vicuna_v1 asks."""
    template = TEMPLATES[prompt.template]
    if template.captions:
        template = TEMPLATES["vicuna_v1"]
    return Prompter(_open_tokenizer(folder), template, prompt.aspect, config, tokens_per_image)


def _open_tokenizer(folder: Path) -> Any:
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} holds no tokenizer ({', '.join(FILES)}), which prompts of text need: copy the files "
            "of the language model's tokenizer there"
        )
    return open_tokenizer(folder)


def _check_texts(name: str, texts: Any) -> None:
    if not isinstance(texts, (list, tuple)):
        raise UserError(f"{name} must be a list of texts, even if there is only one")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"entry {number} of {name} is a {type(text).__name__}: expected a text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"entry {number} of {name} holds half a character (a lone surrogate)")


def _listed(number: int, pictures: Any) -> tuple[Picture, ...]:
    if pictures is None:
        return ()
    listed = tuple(pictures) if isinstance(pictures, (list, tuple)) else (pictures,)
    for picture in listed:
        if not isinstance(picture, (str, Path, Image.Image)):
            raise UserError(
                f"entry {number} of images holds a {type(picture).__name__}: expected a picture of PIL or its path"
            )
    return listed
