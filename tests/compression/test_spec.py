import pytest

from victor_jax.compression.plan import Cut, Kind, Plan
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError


def test_full():
    assert parse("full", 32).plan == Plan((32,), ())
    assert parse("full", 32).registers == 0


def test_victor():
    victor = parse("victor:registers=8,layer=3", 32)
    assert victor.registers == 8
    assert victor.plan == Plan((3, 29), (Cut(Kind.VISUAL, "keep"),))


def test_vtw_renumbered():
    assert parse("vtw:layer=16,positions=renumber", 32).plan == Plan((16, 16), (Cut(Kind.VISUAL, "renumber"),))


def test_layer_at_depth_drops_nothing():
    victor = parse("victor:registers=64,layer=32", 32)
    assert victor.plan == Plan((32,), ())
    assert victor.registers == 64


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("full", "full"),
        ("victor:layer=3,registers=8", "victor:registers=8,layer=3"),
        ("victor:layer=3,registers=08,positions=keep", "victor:registers=8,layer=3"),
        ("vtw:positions=renumber,layer=4", "vtw:layer=4,positions=renumber"),
    ],
)
def test_written_form_is_canonical(written, canonical):
    assert parse(written, 32).spec == canonical
    assert parse(canonical, 32).spec == canonical


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("victr:layer=3", "unknown compression 'victr'.*did you mean 'victor'"),
        ("victor:register=8,layer=3", "unknown field 'register=8'.*did you mean 'registers'"),
        ("victor:registers=8", "needs layer"),
        ("vtw", "needs layer"),
        ("full:layer=3", "takes no fields"),
        ("vtw:layer=33", "layer=33 is outside the language tower of 32 layers"),
        ("vtw:layer=-1", "layer=-1 .* must be a whole number"),
        ("vtw:layer=3,layer=4", "'layer' stands twice"),
        ("victor:registers=0,layer=3", "registers=0 .* must be a positive whole number"),
        ("victor:registers=8,layer=3,positions=drop", "positions=drop .* keep or renumber"),
        ("victor:registers=8,layer", "unknown field 'layer'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec, 32)
