"""A conversation as token ids with the answers supervised: what LLaVA trains on, without the rows that it loses."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from victor_jax.data.images import Records
from victor_jax.data.records import BadRow, Record, Turn, parse_record
from victor_jax.data.templates import Span, Template
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE

IMAGE_TEXT = "<image>"
MARKS = ("[[", "]]")


@dataclass(frozen=True)
class Reader:
    """Record number -> encoded row, cut at the length limit. Picklable."""

    records: Records
    template: Template
    tokenizer: Any
    tokens_per_image: int
    max_length: int  # of text and visual tokens; registers never cost a row its text

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> EncodedRow:
        """Raises BadRow where nothing is supervised."""
        record = parse_record(self.records[row], row)
        encoded = truncate(encode(record, self.template, self.tokenizer, self.tokens_per_image), self.max_length)
        if not (encoded.targets[1:] != IGNORE).any():  # nothing comes before the first, to predict it
            raise BadRow(row, f"nothing within max_length={self.max_length} is supervised")
        return encoded


def checksum(row: EncodedRow) -> int:
    """32 bits of a row's ids and targets: another number, nearly always, where its words are others."""
    return zlib.crc32(row.targets.tobytes(), zlib.crc32(row.ids.tobytes()))


def truncate(row: EncodedRow, max_length: int) -> EncodedRow:
    """The longest beginning of at most `max_length` text and visual tokens that holds its images whole."""
    is_image = row.ids == IMAGE
    positions = np.ones(len(is_image), np.int64)
    positions[is_image] = row.image_tokens
    kept = int((np.cumsum(positions) <= max_length).sum())
    images = int(is_image[:kept].sum())
    return EncodedRow(row.ids[:kept], row.targets[:kept], row.image_tokens[:images], row.images[:images])


def encode(record: Record, template: Template, tokenizer: Any, tokens_per_image: int) -> EncodedRow:
    """Ids and targets of one row.

    Text is tokenised as LLaVA does it: cut at the images, each piece on its own, the start token before the first
    piece only. So a SentencePiece tokenizer puts a lone space token on both sides of an image, and treats the text
    after `</s>` in its own (legacy or newer) way. The answers and their end tokens are supervised, down to the letter:
    an answer may contain `ASSISTANT:` or `</s>`.

    One image: it moves to the front of its turn, `<image>` + newline + the rest, and if the turn names it twice it
    stands once. Several images: each stays where it stands, and there must be as many as the row lists. In a row
    that lists none, `<image>` is a word.
    """
    for number, turn in enumerate(record.turns):
        if not turn.text.strip():
            what = "answer" if turn.speaker == "assistant" else "question"
            raise BadRow(record.index, f"the {what} in turn {number} is empty")
    turns = _place_images(record)
    if template.captions:
        turns = _caption(record, turns)
    if not record.images:
        turns = [replace(turn, text=_as_words(turn.text, tokenizer)) for turn in turns]
    ids, supervised = _tokenise(template.render(turns), bool(record.images), tokenizer)
    targets = np.where(supervised, ids, IGNORE).astype(np.int32)
    return EncodedRow(ids, targets, (tokens_per_image,) * len(record.images), record.images)


def encode_prompt(record: Record, template: Template, tokenizer: Any, tokens_per_image: int) -> EncodedRow:
    """A conversation that ends with a question: what training sees before the answer."""
    answered = replace(record, turns=(*record.turns, Turn("assistant", "x")))
    row = encode(answered, template, tokenizer, tokens_per_image)
    supervised = row.targets != IGNORE
    begins = supervised & ~np.concatenate([[False], supervised[:-1]])
    ids = row.ids[: np.flatnonzero(begins)[-1]]
    return replace(row, ids=ids, targets=np.full_like(ids, IGNORE))


def _place_images(record: Record) -> list[Turn]:
    turns = list(record.turns)
    if len(record.images) == 1:
        turns = [
            Turn(turn.speaker, f"{IMAGE_TEXT}\n{turn.text.replace(IMAGE_TEXT, '').strip()}".strip())
            if IMAGE_TEXT in turn.text
            else turn
            for turn in turns
        ]
    places = sum(turn.text.count(IMAGE_TEXT) for turn in turns)
    if record.images and places != len(record.images):
        raise BadRow(record.index, f"it lists {len(record.images)} images, and its text has {places} {IMAGE_TEXT}")
    return turns


def _caption(record: Record, turns: list[Turn]) -> list[Turn]:
    question, answer = turns[0], turns[-1]
    if len(turns) != 2 or IMAGE_TEXT not in question.text or not record.images:
        raise BadRow(record.index, f"not a caption: expected an {IMAGE_TEXT} in one question, and one answer")
    return [replace(question, text=IMAGE_TEXT * question.text.count(IMAGE_TEXT)), answer]


def _as_words(text: str, tokenizer: Any) -> str:
    """`<image>` that is a word, kept from becoming the image token of a tokenizer that has one."""
    if IMAGE_TEXT not in text or tokenizer.convert_tokens_to_ids(IMAGE_TEXT) in (None, tokenizer.unk_token_id):
        return text
    return text.replace(IMAGE_TEXT, "< image>")


def _tokenise(spans: Iterable[Span], with_images: bool, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Spans -> ids int32 [T] and whether each is supervised, bool [T]."""
    parts = [] if tokenizer.bos_token_id is None else [_one(tokenizer.bos_token_id)]
    piece: list[Span] = []  # since the last image
    for span in spans:
        texts = span.text.split(IMAGE_TEXT) if with_images and not span.markup else [span.text]
        for number, text in enumerate(texts):
            if number or span.fresh:
                parts.append(_tokenise_piece(piece, tokenizer))
                piece = []
            if number:
                parts.append(_one(IMAGE))
            piece.append(Span(text, span.supervised))
    parts.append(_tokenise_piece(piece, tokenizer))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([supervised for _, supervised in parts])


def _one(token: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([token], np.int32), np.zeros(1, bool)


def _tokenise_piece(piece: list[Span], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    text = "".join([span.text for span in piece])
    if not text:
        return np.zeros(0, np.int32), np.zeros(0, bool)
    if not tokenizer.is_fast:
        raise UserError("this tokenizer cannot say where a token stands in the text: use a fast one (tokenizer.json)")
    characters = np.repeat([span.supervised for span in piece], [len(span.text) for span in piece])
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token that reaches over a border belongs to the span of its last character: the space before a word is the
    # word's. Several tokens (bytes) may share one character, and a token may stand for none.
    start, end = np.array(encoding["offset_mapping"], np.int32).reshape(-1, 2).T
    last = np.minimum(np.maximum(start, end - 1), len(text) - 1)
    return np.array(encoding["input_ids"], np.int32), characters[last]


def marked_text(
    tokens: Sequence[int | str],  # a str stands for what is no token, such as an image
    supervised: Sequence[bool],  # of each token: the loss counts it
    tokenizer: Any,
    marks: tuple[str, str] = MARKS,
) -> str:
    """A row as text for human eyes, with what is supervised marked."""
    shown: list[str] = []
    piece: list[int] = []  # tokens since the last image
    before = ""  # their text so far; decoded alone, a later run would lose its leading space
    for number, token in enumerate(tokens):
        if isinstance(token, str):
            shown.append(token)
            piece, before = [], ""
            continue
        piece.append(token)
        after = number + 1
        if after == len(tokens) or isinstance(tokens[after], str) or supervised[after] != supervised[number]:
            text = tokenizer.decode(piece, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            start, end = marks if supervised[number] else ("", "")
            shown.append(f"{start}{text[len(before) :]}{end}")
            before = text
    return "".join(shown)
