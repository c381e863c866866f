"""What docs/reliability.md promises has the tests that it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_a_promise_names_is_there():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).is_file()]
