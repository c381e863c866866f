"""The short part: the same inputs each time."""

import pytest

from fuzz.search import Tally, search
from fuzz.surfaces import SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_it_works_or_is_refused_in_one_sentence(name):
    tally = Tally()
    search(SURFACES[name], 0, SURFACES[name].short, tally)
    assert not tally.findings, "\n".join(tally.findings.values())
    assert tally.tried >= SURFACES[name].short
    assert tally.worked, "nothing was taken: the inputs are too strange"
    assert tally.refused, "nothing was refused: the inputs are too tame"
