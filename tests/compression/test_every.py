"""No method is forgotten: each is in the benchmark's table and on the page of methods."""

from pathlib import Path

import every
import field
import pytest

from benchmarks import methods
from victor_jax.compression.spec import METHODS, parse
from victor_jax.models.sizes import SIZES

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def test_each_has_a_form_for_the_small_model():
    assert every.SPECS.keys() == METHODS.keys()
    for spec in every.SPECS.values():
        parse(spec, field.CONFIG)


@pytest.mark.parametrize("name", METHODS)
def test_each_is_benchmarked_and_on_the_page(name):
    written = [one for spec in methods.SPECS for one in spec.split("+")]
    assert name in {one.partition(":")[0] for one in written}
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert any(row.startswith((f"| `{name}:", f"| `{name}`")) for row in rows), f"docs/methods.md has no row of {name}"


def test_the_benchmark_fits_a_model_of_7b():
    for spec in methods.SPECS:
        parse(spec, SIZES["7b"])
