"""How the VQA benchmarks compare answers: normalised as their server does it, with credit for what annotators agree on.

The rules, and their oddities, are those of EvalAI's answer processor as LLaVA's scripts use it (facebookresearch/mmf,
haotian-liu/LLaVA llava/eval/m4c_evaluator.py), so that a number agrees with the published ones to the last digit.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import mean, means_by_kind, parse, read_text

MARKS = ';/[]"{}()=+\\_-><@`,?!'
# A period that no digit follows. (Their pattern also meant to look at what is before it, and does not.)
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # are removed: re.sub takes the flag that they pass for a count
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
# Each is recognised without its apostrophe; where it has two, without either one. Those that end in 's are written
# apart by then if they had theirs.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll you'd
you'd've you'll you're you've
""".split()  # noqa: SIM905
RESTORED = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTIONS
    for at in (match.start() for match in re.finditer("'", word))
}
RESTORED |= {"somebody'd": "somebodyd"}  # as their table has it
# With three apostrophes, without any one of them.
RESTORED |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
RESTORED |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")


@lru_cache(1 << 16)  # annotators often say the same
def normalised(answer: str) -> str:
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = PERIOD.sub("", _without_marks(text), count=MOST_PERIODS).lower().split()
    words = [DIGITS.get(word, word) for word in words]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(text: str) -> str:
    """Marks that stand beside a space are removed, wherever else they stand too; the others become a space."""
    found = text
    for mark in MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside else " ")
    return found


def soft_score(answer: str, references: Sequence[str]) -> float:
    """The credit of an answer, 0 to 1, normalised like the references: for each of the ten annotators, a third for
    every other one who gave that answer, at most one; the mean over all ten."""
    counts = Counter(references)
    agreeing = counts[answer]
    total = len(references)
    others = agreeing * min(1.0, (agreeing - 1) / 3) + (total - agreeing) * min(1.0, agreeing / 3)
    return others / total


@dataclass(frozen=True)
class References:
    """What the annotators of one question said."""

    answers: Sequence[str]
    kind: str = ""


def references_of(row: dict[str, Any]) -> References:
    """Of a row as VQAv2 and VizWiz publish it."""
    return References([one["answer"] for one in row["answers"]], row.get("answer_type", ""))


def rate(truth: Mapping[Hashable, References], texts: Mapping[Hashable, str | None]) -> tuple[float, dict[str, float]]:
    credits = {key: _credit(texts[key], references) for key, references in truth.items()}
    return mean(credits.values()), means_by_kind(credits, {key: (one.kind,) for key, one in truth.items()})


def _credit(text: str | None, references: References) -> float:
    return 0.0 if text is None else soft_score(normalised(text), [normalised(one) for one in references.answers])


def read_rows(file: Path, under: str, *fields: str) -> list[dict[str, Any]]:
    """Of a JSON file: the list, which stands under a key where one is given, of objects with these fields."""
    held = parse(read_text(file), str(file))
    rows = held.get(under) if under and isinstance(held, dict) else held
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and r.keys() >= set(fields) for r in rows):
        raise UserError(f"{file} is no annotation file of this benchmark: expected rows with {', '.join(fields)}")
    return rows
