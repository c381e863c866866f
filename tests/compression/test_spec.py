import pytest

from victor_jax.compression.plan import Kind, Layers, Plan
from victor_jax.compression.spec import parse, with_cut
from victor_jax.compression.steps import Leave
from victor_jax.errors import UserError
from victor_jax.models.sizes import SIZES

CONFIG = SIZES["7b"]  # 32 layers


def test_full():
    assert parse("full", CONFIG).plan == Plan((Layers(32),))
    assert parse("full", CONFIG).registers == 0


def test_victor():
    victor = parse("victor:registers=8,layer=3", CONFIG)
    assert victor.registers == 8
    assert victor.plan == Plan((Layers(3), Leave(Kind.VISUAL), Layers(29)))


def test_vtw_renumbered():
    assert parse("vtw:layer=16,positions=renumber", CONFIG).plan == Plan(
        (Layers(16), Leave(Kind.VISUAL, positions="renumber"), Layers(16))
    )


def test_layer_0_is_blind():
    assert parse("vtw:layer=0", CONFIG).plan == Plan((Leave(Kind.VISUAL), Layers(32)))


def test_layer_at_depth_drops_nothing():
    victor = parse("victor:registers=64,layer=32", CONFIG)
    assert victor.plan == Plan((Layers(32),))
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
    assert parse(written, CONFIG).spec == canonical
    assert parse(canonical, CONFIG).spec == canonical


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
        ("vtw:layer=3,layer=4", "'layer' is given twice"),
        ("victor:registers=0,layer=3", "registers=0 .* must be a whole number from 1"),
        ("victor:registers=8,layer=3,positions=drop", "positions=drop .* keep or renumber"),
        ("victor:registers=8,layer", "unknown field 'layer'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec, CONFIG)


@pytest.mark.parametrize(
    ("spec", "at_9"),
    [
        ("full", "vtw:layer=9"),
        ("pool:tokens=4", "pool:tokens=4+vtw:layer=9"),
        ("victor:registers=2,layer=13,positions=renumber", "victor:registers=2,positions=renumber,layer=9"),
        ("vtw", "vtw:layer=9"),
        ("vtw:layer=13+pool:tokens=4", "vtw:layer=9+pool:tokens=4"),
    ],
)
def test_a_cut_is_moved_or_added(spec, at_9):
    assert with_cut(spec, 9) == at_9


@pytest.mark.parametrize(("spec", "message"), [
    ("vtw:layer=3+fastv:keep=4", r"vtw:layer=3 and fastv:keep=4 work in the language tower; join one"),
    ("pool:tokens=4+divprune:tokens=4", r"pool:tokens=4 and divprune:tokens=4 work before the language tower; join"),
    ("pool:tokens=4+vtw:layer=3+victor:registers=2,layer=3", r"vtw:layer=3 and victor:registers=2,layer=3 work in"),
    ("llavamini+vtw:layer=3", r"llavamini already works in the language tower"),
    ("mqt:tokens=4+victor:registers=2,layer=3", r"mqt:tokens=4 draws a number of visual tokens for each row"),
])  # fmt: skip
def test_what_does_not_combine_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        parse(spec, SIZES["7b"])


def test_a_compressor_goes_under_any_method_of_the_tower():
    config = SIZES["7b"]
    method = parse("pool:tokens=64+victor:registers=8,layer=3", config)
    pool, victor = parse("pool:tokens=64", config), parse("victor:registers=8,layer=3", config)
    assert (method.plan, method.registers, method.compressor) == (victor.plan, 8, pool.compressor)
    assert method.spec == "pool:tokens=64+victor:registers=8,layer=3"
