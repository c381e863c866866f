"""The method that docs/methods.md shows how to add, taken from the page, works; and nothing else knows any method."""

import re
from pathlib import Path

import field
import pytest

from victor_jax.compression import spec

ROOT = Path(spec.__file__).parents[2]
# Words of the language as well, or the baseline and the method that the whole is named after.
ORDINARY = {"full", "victor", "pool", "last", "random", "windows", "elastic"}


@pytest.fixture(autouse=True)
def added(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)
    names: dict = {"__name__": "added"}
    exec(compile(code, "docs/methods.md", "exec"), names)
    monkeypatch.setitem(spec.METHODS, "loud", names["loud"])


def test_it_has_the_properties_of_every_method():
    field.equals_its_rows_alone("loud:keep=4,layer=3")
    field.decoding_equals_a_full_pass("loud:keep=4,layer=3")


def test_it_keeps_all_where_there_are_no_more():
    field.equals_full("loud:keep=32,layer=3")


def test_nothing_outside_compression_knows_a_method():
    names = "|".join(sorted(spec.METHODS.keys() - ORDINARY - {"loud"}))
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in [*(ROOT / "victor_jax").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
        if "compression" not in file.parts
        for line in file.read_text().splitlines()
        if re.search(rf"\b({names})\b", line, re.IGNORECASE)
    ]
    assert not found
