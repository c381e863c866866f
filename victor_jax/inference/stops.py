"""Stop strings as a table for the compiled loop: in which state the text of an answer is after each token.

Bytes are matched, not tokens: tokens can spell a string in many ways, and it may begin and end inside of them. What is
searched is what the tokenizer's `decode` would give after every token:

- special tokens say nothing, and the first space of an answer is left out where the tokenizer leaves it out;
- where single bytes are tokens (SentencePiece's `<0x0A>`), a run of them that is not whole UTF-8 is shown as nothing
  but replacement characters. So a character that is not complete matches nothing yet, and a broken run nothing at all.
"""

import functools
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from victor_jax.errors import UserError

STATES_MULTIPLE = 16  # of a table: most stop strings share a program
SPACE = b" "
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# The run of single bytes at the end: whole characters (or none), broken, or how many bytes its last character lacks
# and between what the next one must be. Two states are named here too.
Run = str | tuple[int, int, int]
# The longest end of the text that a stop string begins with, and the run.
State = tuple[bytes, Run]
START, STOPPED, ROOT, BROKEN = (b"", "start"), (b"", "stopped"), (b"", "whole"), (b"", "broken")
IS_STOPPED = 1  # the number of that state; START is 0


@dataclass(frozen=True)
class Spelling:
    """What the tokens of a vocabulary say."""

    text: list[bytes]  # of each token; nothing where it is special, or a single byte
    single: dict[int, int]  # tokens of single bytes -> the byte
    strips: bool  # the first space of a text is left out


@functools.lru_cache(maxsize=8)
def stop_table(tokenizer: Any, stop: tuple[str, ...], vocabulary: int) -> np.ndarray:
    """int32 [states, vocabulary]: the number of the state after a token."""
    spelling, stops = spelling_of(tokenizer, vocabulary), tuple(text.encode() for text in stop)
    prefixes = {text[:length] for text in stops for length in range(len(text))}
    numbers, states = dict[State, int](), list[State]()
    beginning = defaultdict[int, list[int]](list)  # byte -> the tokens that begin with it
    for token, text in enumerate(spelling.text):
        beginning[text[0] if text else -1].append(token)

    def number(state: State) -> int:
        if state not in numbers:
            numbers[state] = len(states)
            states.append(state)
        return numbers[state]

    def after(prefix: bytes, text: bytes) -> State:
        text = prefix + text
        if any(one in text for one in stops):
            return STOPPED
        while text not in prefixes:
            text = text[1:]
        return text, "whole"

    def after_byte(state: State, byte: int) -> State:
        prefix, run = state
        if (run := _next_run(run, byte)) == "broken":
            return BROKEN
        found = after(prefix, bytes([byte]))
        return found if found == STOPPED else (found[0], run)

    def after_tokens(state: State) -> np.ndarray:
        prefix, run = state
        if state == STOPPED:
            return np.full(vocabulary, IS_STOPPED, np.int32)
        row = of_root.copy()
        if state == START and spelling.strips:
            for token in beginning[SPACE[0]]:
                row[token] = number(after(b"", spelling.text[token][1:]))
        elif run == "whole":
            for byte in range(256):  # most tokens do not go on with what a prefix began
                if after(prefix, bytes([byte])) != after(b"", bytes([byte])):
                    for token in beginning[byte]:
                        row[token] = number(after(prefix, spelling.text[token]))
        row[beginning[-1]] = number(state)
        for token, byte in spelling.single.items():
            is_left_out = state == START and spelling.strips and byte == SPACE[0]
            row[token] = number(ROOT if is_left_out else after_byte(ROOT if state == START else state, byte))
        return row

    for state in (START, STOPPED, ROOT):
        number(state)
    of_root = np.array([number(after(b"", text)) for text in spelling.text], np.int32)
    rows = [after_tokens(state) for state in states]  # which grow on the way
    return np.pad(np.stack(rows), ((0, -len(rows) % STATES_MULTIPLE), (0, 0)))


def spelling_of(tokenizer: Any, vocabulary: int) -> Spelling:
    """Of a byte-level or a SentencePiece tokenizer. Tokens of the model that it does not know say nothing."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.decoder.__getstate__()) if backend and backend.decoder else {"type": "none"}
    kinds = {one["type"] for one in decoder.get("decoders", [decoder])}
    if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise UserError(
            f"stop strings need a byte-level or a SentencePiece tokenizer, this one decodes by {' and '.join(kinds)}"
        )
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocabulary)))
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    text, single, byte_of = [b""] * vocabulary, dict[int, int](), _byte_level_alphabet()
    for token, piece in enumerate(pieces):
        if piece is None or token in special:
            continue
        if "ByteLevel" in kinds:
            known = all(character in byte_of for character in piece)
            text[token] = bytes(map(byte_of.__getitem__, piece)) if known else piece.encode()
        elif "ByteFallback" in kinds and (byte := BYTE_TOKEN.fullmatch(piece)):
            single[token] = int(byte[1], 16)
        else:
            text[token] = piece.replace("\u2581", " ").encode()
    spaced = next((token for token, said in enumerate(text) if said[:1] == SPACE and said.strip().isalpha()), None)
    return Spelling(text, single, spaced is not None and not tokenizer.decode([spaced]).startswith(" "))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, characters from 256 on for the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _next_run(run: Run, byte: int) -> Run:
    """UTF-8, byte by byte (Unicode, table 3-7)."""
    if run == "broken":
        return run
    if isinstance(run, tuple):
        missing, least, most = run
        if not least <= byte <= most:
            return "broken"
        return (missing - 1, 0x80, 0xBF) if missing > 1 else "whole"
    if byte < 0x80:
        return "whole"
    if not 0xC2 <= byte <= 0xF4:
        return "broken"
    least, most = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(
        byte, (0x80, 0xBF)
    )
    return (1 + (byte >= 0xE0) + (byte >= 0xF0), least, most)
