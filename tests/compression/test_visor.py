"""VISOR against plain numpy: every sub-network, its router, its groups."""

import field
import numpy as np
import plain
import pytest

from victor_jax.compression.plan import Layers, Plan
from victor_jax.compression.spec import parse
from victor_jax.compression.visor import joint_layers, ladder, reads
from victor_jax.errors import UserError
from victor_jax.models.parameters import Constant
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import parameters

SPEC = "visor:self=2,cross=2"
DEPTH = plain.LANGUAGE.depth


def read(model, layers, x, origin, visual, places):
    """Text x [T, D] at these places of the sequence reads visual [V, D] at theirs."""
    name = f"compression/steps/cross_{layers}"
    y, kernel = model.rms_norm(f"{name}/norm_visual", visual), model.tensors[f"{name}/convolution"]
    mixed = y.copy()
    for i, place in enumerate(places):
        for offset in range(-3, 4):
            (j,) = np.nonzero(places == place + offset) if place + offset in places else ([],)
            for neighbour in j:
                mixed[i] += kernel[offset + 3] * y[neighbour]
    q = plain.heads(model.linear(f"{name}/q", model.rms_norm(f"{name}/norm_text", x)), plain.LANGUAGE.heads)
    k, v = (plain.heads(model.linear(f"{name}/{part}", mixed), plain.LANGUAGE.kv_heads) for part in "kv")
    k, v = (np.repeat(part, plain.LANGUAGE.heads // plain.LANGUAGE.kv_heads, axis=1) for part in (k, v))
    x = x.copy()
    for i, place in enumerate(origin):
        if (sees := places < place).any():
            weights = plain.softmax(q[i : i + 1], k[sees])
            x[i] += model.linear(f"{name}/o", np.einsum("nts,snh->tnh", weights, v[sees]).reshape(1, -1))[0]
    return x


def reference(model, row, images, selves, crosses):
    """The places of what reaches the top, and its logits."""
    x, is_visual = model.inputs(row, images)
    positions = np.arange(len(x))
    text, places = np.flatnonzero(~is_visual), np.flatnonzero(is_visual)
    for number in range(DEPTH):
        if number in crosses and len(places):
            x[text] = read(model, number, x[text], text, x[places], places)
        if number in selves:
            x = model.layer(number, x, positions)
        else:
            x[text] = model.layer(number, x[text], text)
    top = positions if DEPTH - 1 in selves else text
    return top, model.logits(x[top])


@pytest.mark.parametrize(
    ("spec", "selves", "crosses"),
    [
        (SPEC, (2, 5), (1, 4)),
        ("visor:self=0,cross=1", (), (1,)),
        ("visor:self=3,cross=0", (1, 3, 5), ()),
        ("visor:self=0,cross=0", (), ()),  # text alone
    ],
)
def test_equals_the_slow_reference(spec, selves, crosses):
    """A batch of rows with two images with words between them, one and none, against each row alone."""
    model = plain.Plain(spec)
    plain.equals(spec, lambda row, images: reference(model, row, images, selves, crosses))


def test_all_layers_together_are_the_full_tower():
    assert parse("visor:self=6,cross=0", field.CONFIG).plan == Plan((Layers(DEPTH),))


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(SPEC)


def test_its_blocks_learn(tmp_path):
    field.learns(SPEC, tmp_path)


def test_a_cross_attention_starts_by_adding_nothing():
    declared = parameters(field.model(SPEC)[0])
    assert [declared[f"compression/steps/cross_{n}/o/kernel"].start for n in (1, 4)] == [Constant(0.0)] * 2


def test_the_layers_of_a_smaller_number_are_among_those_of_a_larger_one():
    for depth in (6, 24, 32):
        numbers = [n for n in range(1, depth // 3 + 1) if depth % n == 0]
        for fewer in numbers:
            for more in (n for n in numbers if n % fewer == 0):
                assert set(joint_layers(depth, fewer)) <= set(joint_layers(depth, more))
                assert set(reads(depth, fewer)) <= set(reads(depth, more))


def test_sub_networks_have_the_stages_of_the_largest():
    """So one set of parameters serves all of them; and they part late."""
    method = parse("visor:policy", SIZES["7b"])
    plans = [end.plan for end in method.fork.ends]
    assert [end.spec for end in method.fork.ends] == [
        f"visor:self={selves},cross={crosses}" for selves, crosses in ladder(8, 8)
    ]
    assert {plan.stages for plan in plans} == {method.plan.stages}
    assert method.fork.layers == 2
    assert parse("visor:sampled", SIZES["7b"]).sampled == tuple(plans)


def test_what_does_not_see_the_image_caches_text_alone():
    plan = parse("visor:self=2,cross=8", SIZES["7b"]).plan
    lengths = plan.stage_lengths(plan.sizes(np.array([[0, 64, 576, 0]])))
    assert sum(count for count, length in zip(plan.stages, lengths, strict=True) if length == 640) == 2
    assert set(lengths) == {64, 640}


@pytest.mark.parametrize(("fields", "message"), [
    ("self=5", "self=5 does not divide the language tower of 32 layers: choose one of 0, 1, 2, 4, 8, 16, 32"),
    ("cross=3", "cross=3 does not divide"),
    ("sampled,policy", "sampled and policy exclude each other"),
    ("self=0,cross=1,policy", "self=0 and cross=1 have no smaller sub-network"),
    ("policy=yes", "unknown field 'policy=yes'"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        parse(f"visor:{fields}", SIZES["7b"])
