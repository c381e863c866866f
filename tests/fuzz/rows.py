"""Files of LLaVA rows, JSON and JSONL. The reference is Python's parser on the whole text, and the rules once more in
their plainest words."""

import functools
import itertools
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from tokenizers_tiny import sentencepiece_tokenizer

from fuzz.property import REFUSALS, Surface, is_one_sentence
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps, raw, texts, values
from victor_jax.data.labels import Reader
from victor_jax.data.records import BadRow, parse_record
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.losses import IGNORE

TOKENS = 4  # of an image
LONGEST = 100_000

said = st.one_of(
    st.lists(
        st.sampled_from(("<image>", "\n", " ", "cat", "</s>", "USER:", "ASSISTANT:", "名", "\ud83d")), max_size=5
    ).map("".join),
    st.sampled_from(("What is in it?", "Yes.")),
    texts,
)
answers = st.one_of(st.just("A cat."), said)
questions = st.one_of(st.just("What is it?"), said)
pairs = st.lists(
    st.builds(
        lambda question, answer: [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        questions,
        answers,
    ),
    min_size=1,
    max_size=3,
).map(lambda turns: list(itertools.chain.from_iterable(turns)))
images = st.sampled_from(
    ("a.png", "a.png", ["a.png", "b.png"], [], "", "../a.png", "absent.png", "a\0.png", "a\ud800", 5, [""])
)
rows = st.one_of(
    st.builds(lambda turns: {"conversations": turns}, pairs),
    st.builds(lambda turns, image: {"conversations": turns, "image": image}, pairs, images),
    st.builds(
        lambda turns, image: {
            "conversations": [{"from": "human", "value": "<image>\nSo?"}, *turns[1:]],
            "image": image,
        },
        pairs,
        images,
    ),
)


@dataclass(frozen=True)
class File:
    rows: list[Any]
    changes: list[Change]
    lines: bool  # JSONL
    ascii: bool
    damage: list[Damage]

    def data(self) -> bytes:
        held = changed(self.rows, self.changes)
        written = (
            [dumps(row, ensure_ascii=self.ascii) for row in held]
            if self.lines
            else [dumps(held, ensure_ascii=self.ascii)]
        )
        return damaged("\n".join(written).encode("utf-8", "surrogatepass"), self.damage)


@functools.cache
def tokenizer():
    return sentencepiece_tokenizer(False)


class Rows(Surface):
    name, short = "rows", 250
    inputs = st.builds(
        File,
        st.lists(st.one_of(rows, rows, rows, values, raw), max_size=4),
        st.one_of(st.just([]), st.just([]), changes),
        st.booleans(),
        st.booleans(),
        st.one_of(st.just([]), st.just([]), damages),
    )

    def prepare(self, given, room):
        file = room / ("data.jsonl" if given.lines else "data.json")
        file.write_bytes(given.data())
        for name in ("a.png", "b.png"):
            Image.new("RGB", (5, 4)).save(room / name)
        return file

    def attempt(self, prepared, room):
        records = open_source(prepared, room)
        reader = Reader(records, TEMPLATES["vicuna_v1"], tokenizer(), TOKENS, LONGEST)
        found = []
        for number in range(len(reader)):
            assert records.describe(number).isprintable()
            try:
                found.append((records[number], parse_record(records[number], number), reader[number]))
            except BadRow as bad:
                found.append((records[number], None, bad))
        return found

    def compare(self, prepared, result):
        try:
            expected = (
                lines_of(prepared.read_bytes()) if prepared.suffix == ".jsonl" else list_of(prepared.read_bytes())
            )
        except (ValueError, RecursionError):
            assert isinstance(result, REFUSALS), "taken, though it is not JSON"
            return
        assert isinstance(result, list), f"refused, though Python reads it: {result}"
        assert [repr(row) for row, *_ in result] == [repr(row) for row in expected]
        for row, record, encoded in result:
            turns = plain(row)
            if record is not None:
                assert turns == [(turn.speaker, turn.text) for turn in record.turns]
                check_encoded(record, encoded)
            else:
                assert is_one_sentence(str(encoded)), encoded
            if record is None and turns is not None:
                assert any(word in encoded.reason for word in ("is empty", "images, and its text", "supervised")), (
                    encoded
                )


def list_of(data: bytes) -> list[Any]:
    found = json.loads(data.decode("utf-8-sig"))
    return checked(found if isinstance(found, list) else [None])


def lines_of(data: bytes) -> list[Any]:
    text, at, found = data.decode("utf-8-sig"), 0, []
    while rest := text[at:].lstrip(" \t\r\n"):
        at = len(text) - len(rest)
        row, at = json.JSONDecoder().raw_decode(text, at)
        found.append(row)
    return checked(found)


def checked(found: list[Any]) -> list[Any]:
    if not found or not all(isinstance(row, dict) for row in found):
        raise ValueError
    return found


def plain(row: dict[str, Any]) -> list[tuple[str, str]] | None:
    """Who says what; None of a row that cannot be used."""
    turns, image = row.get("conversations"), row.get("image")
    names = {"human": "human", "gpt": "assistant"}
    try:
        said = [(names[turn["from"]], turn["value"]) for turn in turns]
        if not isinstance(turns, list) or not all(isinstance(text, str) for _, text in said):
            return None
        if said and said[0][0] == "assistant":
            del said[0]
        listed = [] if image in (None, "") else [image] if isinstance(image, str) else image
        good = isinstance(listed, list) and all(isinstance(path, str) and path for path in listed)
        good = good and len(said) >= 2 and all(who == list(names.values())[i % 2] for i, (who, _) in enumerate(said))
        "".join([*listed, *(text for _, text in said)]).encode()
    except (KeyError, TypeError, UnicodeEncodeError):
        return None
    return said if good else None


def check_encoded(record, encoded) -> None:
    """As many images as are listed, and the answers supervised, to the letter but for white space."""
    assert int((encoded.ids == IMAGE).sum()) == len(record.images)
    assert encoded.image_tokens == (TOKENS,) * len(record.images)
    trained = tokenizer().decode(
        encoded.targets[encoded.targets != IGNORE].tolist(), clean_up_tokenization_spaces=False
    )
    answers = [turn.text.replace("<image>", "") if record.images else turn.text for turn in record.turns[1::2]]
    assert "".join(trained.split()) == "".join("".join(f"{answer}</s>" for answer in answers).split())
