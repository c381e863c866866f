"""Strategies that several surfaces share: strange values, damaged bytes, changed JSON."""

import copy
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

WORDS = ("", " ", "<image>", "\n", "\0", "\x1b[2J", "\ud800", "é", "名", "🙂", "../x", "NaN", "1e999", "-", "x" * 5000)
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**30))
FLOATS = (0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
DEEP = "[" * 20_000 + "]" * 20_000


class Raw(str):
    """JSON that is written as it is."""

    def __repr__(self) -> str:
        return f"Raw({self[:30]!r}…)" if len(self) > 30 else f"Raw({self[:]!r})"


texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-5, 300))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(FLOATS), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)
raw = st.sampled_from(("NaN", "-Infinity", "1" * 5000, DEEP, '{"a":1,"a":2}', "01", "'x'", '"\\ud800"', "nul")).map(Raw)


def dumps(value: Any, **options: Any) -> str:
    """JSON with `Raw` parts in it."""
    parts: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            parts.append(str(value))
            return f"@raw{len(parts) - 1}@"
        if isinstance(value, dict):
            return {key: marked(one) for key, one in value.items()}
        return [marked(one) for one in value] if isinstance(value, list) else value

    text = json.dumps(marked(value), **options)
    for number, part in enumerate(parts):
        text = text.replace(f'"@raw{number}@"', part)
    return text


# --- bytes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """One change of some bytes, at a share of their length."""

    kind: str
    where: float
    what: bytes

    def of(self, data: bytes) -> bytes:
        at = int(self.where * len(data))
        match self.kind:
            case "cut":
                return data[:at]
            case "flip":
                return data[:at] + bytes([data[at] ^ (self.what or b"\1")[0]]) + data[at + 1 :] if data else data
            case "insert":
                return data[:at] + self.what + data[at:]
            case "overwrite":
                return data[:at] + self.what + data[at + len(self.what) :]
            case _:
                return data[:at] + data[at + len(self.what) + 1 :]


damages = st.lists(
    st.builds(
        Damage,
        st.sampled_from(("flip", "overwrite", "cut", "insert", "remove")),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=8), st.sampled_from((b"\0" * 8, b"\xff" * 8, b"\xef\xbb\xbf", b'"', b"}"))
        ),
    ),
    max_size=3,
)


def damaged(data: bytes, by: list[Damage]) -> bytes:
    for damage in by:
        data = damage.of(data)
    return data


# --- JSON -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One entry of a tree of dicts and lists is replaced, removed, or gets a neighbour."""

    kind: str
    where: int
    what: Any

    def __call__(self, tree: Any) -> None:
        places = [(parent, key) for parent in _parents(tree) for key in _keys(parent)]
        if not places:
            return
        parent, key = places[self.where % len(places)]
        if self.kind == "remove":
            del parent[key]
        elif self.kind == "add" and isinstance(parent, dict):
            parent[f"{key}_"] = self.what
        elif self.kind == "scale" and isinstance(parent[key], int | float):
            parent[key] = parent[key] * 2 if self.where % 2 else parent[key] // 2
        else:
            parent[key] = self.what


changes = st.lists(
    st.builds(
        Change,
        st.sampled_from(("replace", "replace", "scale", "remove", "add")),
        st.integers(0, 10_000),
        st.one_of(values, raw),
    ),
    min_size=1,
    max_size=3,
)


def changed(tree: Any, by: list[Change]) -> Any:
    tree = copy.deepcopy(tree)
    for change in by:
        change(tree)
    return tree


def _parents(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        yield tree
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _parents(one)


def _keys(parent: Any) -> Any:
    return list(parent) if isinstance(parent, dict) else range(len(parent))
