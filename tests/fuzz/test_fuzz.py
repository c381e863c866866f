"""The short part: the same inputs each time."""

import gc

import pytest

from fuzz.search import Tally, search
from fuzz.surfaces import SURFACES


# Orbax leaves coroutines behind that failed on a damaged file, and they complain when they are collected: here, not in
# whatever test comes after.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", SURFACES)
def test_it_works_or_is_refused_in_one_sentence(name):
    tally = Tally()
    search(SURFACES[name], 0, SURFACES[name].short, tally)
    gc.collect()
    assert not tally.findings, "\n".join(tally.findings.values())
    assert tally.tried >= SURFACES[name].short
    assert tally.worked, "nothing was taken: the inputs are too strange"
    assert tally.refused, "nothing was refused: the inputs are too tame"
