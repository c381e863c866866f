"""A row of LLaVA's format, whatever file it comes from: {"conversations": [{"from", "value"} …], "image": path(s)}."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from victor_jax.errors import UserError, one_line

if TYPE_CHECKING:  # it needs PIL, and the training step comes by here
    from victor_jax.data.images import Records

Speaker = Literal["human", "assistant"]
SHOWN = 5  # bad rows named in an error
SPEAKERS: dict[str, Speaker] = {"human": "human", "gpt": "assistant"}

Bad = tuple[int, str]  # row, reason


class BadRow(Exception):
    """A row that cannot be trained on. It is skipped, counted and listed: one of 665,000 must not end a run."""

    def __init__(self, index: int, reason: str):
        super().__init__(index, reason)
        self.index, self.reason = index, one_line(reason)

    def __str__(self) -> str:
        return f"row {self.index}: {self.reason}"


@dataclass(frozen=True)
class Turn:
    speaker: Speaker
    text: str


@dataclass(frozen=True)
class Record:
    index: int
    images: tuple[Any, ...]  # names that the row's image source knows, or pictures; none for a text-only row
    turns: tuple[Turn, ...]  # human and assistant alternate, the human first


def check_bad_rows(bad: list[Bad], most: int | None, source: "Records") -> None:
    """Too many are an error that names the first few."""
    if most is not None and len(bad) > most:
        named = "; ".join(f"{source.describe(row)}: {reason}" for row, reason in bad[:SHOWN])
        raise UserError(
            f"more than data.max_bad_rows={most} rows cannot be used, the first are {named}. Mend the data "
            "(victor-jax check-data lists them) or allow more"
        )


def parse_record(raw: dict[str, Any], index: int) -> Record:
    """The row as alternating turns; raises BadRow where LLaVA's own reader would fail or train on nothing."""
    turns = raw.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadRow(index, "it has no 'conversations', a list of turns")
    parsed = [_turn(turn, number, index) for number, turn in enumerate(turns)]
    if parsed[0].speaker != "human":
        parsed = parsed[1:]  # as LLaVA does: an opening turn of the assistant has no question
    for number, turn in enumerate(parsed):
        if turn.speaker != ("human", "assistant")[number % 2]:
            raise BadRow(index, f"two turns of the {turn.speaker} follow each other: they must alternate")
    if len(parsed) < 2:
        raise BadRow(index, "it has no answer: expected a turn of 'human' and then one of 'gpt'")
    images = image_paths(raw, index)
    try:
        "".join([*images, *(turn.text for turn in parsed)]).encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer and no file system takes
        raise BadRow(index, "it holds half a character (a lone surrogate)") from None
    return Record(index, images, tuple(parsed))


def image_paths(raw: dict[str, Any], index: int) -> tuple[str, ...]:
    """`image` is absent, a path, or a list of paths."""
    paths = raw.get("image")
    if paths is None or paths == "":
        return ()
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise BadRow(index, "its 'image' is neither a path nor a list of paths")
    return tuple(paths)


def _turn(turn: Any, number: int, index: int) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow(index, f"turn {number} is not an object with 'from' and 'value'")
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadRow(index, f"turn {number} is from {speaker!r}: expected 'human' or 'gpt'")
    if not isinstance(text, str):
        raise BadRow(index, f"turn {number} has no text in 'value'")
    return Turn(SPEAKERS[speaker], text)
