"""DyVTE: its exits are withdrawals, its gates learn (what they decide: test_choice.py)."""

import field
import numpy as np
import pytest

from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES


def test_its_plans_are_withdrawals_with_common_stages():
    method = parse("dyvte:exits=8-12", SIZES["7b"])
    assert [end.spec for end in method.fork.ends] == ["vtw:layer=8", "vtw:layer=12", "full"]
    assert {end.plan.stages for end in method.fork.ends} == {(8, 4, 20)}
    assert [fork.layers for fork in method.fork.forks] == [8, 12]
    counts = np.array([[0, 64, 576, 0]])
    for end in method.fork.ends:
        alone = parse(end.spec, SIZES["7b"]).plan
        plan = end.plan
        per_layer = np.repeat(plan.stage_lengths(plan.sizes(counts)), plan.stages)
        np.testing.assert_array_equal(per_layer, np.repeat(alone.stage_lengths(alone.sizes(counts)), alone.stages))


def test_by_default_a_few_layers_have_a_gate_and_exactly_all():
    assert [fork.layers for fork in parse("dyvte", SIZES["7b"]).fork.forks] == [8, 12, 16, 20, 24]
    assert [fork.layers for fork in parse("dyvte:exact", field.CONFIG).fork.forks] == [1, 2, 3, 4, 5]


def test_where_nothing_leaves_it_is_full():
    field.equals_full("dyvte:exits=2-4")


@pytest.mark.parametrize(("fields", "message"), [
    ("exits=8-8", "exits=8-8 must be rising numbers of layers below the language tower's 32"),
    ("exits=32", "exits=32 must be rising"),
    ("exact,exits=3", "exact has a gate after every layer"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        parse(f"dyvte:{fields}", SIZES["7b"])
