"""A row as text for human eyes, with what is supervised marked."""

from collections.abc import Sequence
from typing import Any

MARKS = ("[[", "]]")


def marked_text(
    tokens: Sequence[int | str],  # a str stands for what is no token, such as an image
    supervised: Sequence[bool],  # of each token: the loss counts it
    tokenizer: Any,
    marks: tuple[str, str] = MARKS,
) -> str:
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
