"""What chooses a plan for each row, against plain numpy; and what its groups give, against their plans on all rows."""

import math
from dataclasses import replace
from pathlib import Path

import field
import numpy as np
import plain
import pytest
from flax.traverse_util import unflatten_dict
from test_visor import read

from victor_jax.analysis import policy
from victor_jax.compression.choice import Outcome
from victor_jax.compression.dyvte import keeps as keeps_exit
from victor_jax.compression.spec import parse
from victor_jax.compression.visor import keeps as keeps_network
from victor_jax.inference import programs
from victor_jax.inference.buckets import room_for
from victor_jax.inference.forks import groups
from victor_jax.inference.vlm import VLM
from victor_jax.prompt import Prompt


def of_network(model, name, x, row, is_visual, place):
    """The outputs of a chooser that looks at states x [T, D] at these places of the sequence."""
    end = len(is_visual) - field.ANSWER - 1
    first = np.argmax(is_visual) if is_visual.any() else 0
    words = x[(place >= first) & (place < end) & ~is_visual[place]]
    seen = np.concatenate([words.mean(axis=0), x[np.flatnonzero(place <= end)[-1]]])
    hidden = seen @ model.tensors[f"{name}/up"]
    return (hidden * (1 + np.vectorize(math.erf)(hidden / 2**0.5)) / 2) @ model.tensors[f"{name}/down"]


def by_router(spec, row, images):
    """Which plan VISOR's router chooses: after two layers, text has read once."""
    model = plain.Plain(spec)
    x, is_visual = model.inputs(row, images)
    text, places = np.flatnonzero(~is_visual), np.flatnonzero(is_visual)
    y = model.layer(0, x[text], text)
    y = model.layer(1, read(model, 1, y, text, x[places], places) if len(places) else y, text)
    return int(of_network(model, "compression/steps/router", y, row, is_visual, text).argmax())


def by_gates(spec, row, images):
    """The exit that DyVTE's gates choose, of two and four layers."""
    model = plain.Plain(spec)
    x, is_visual = model.inputs(row, images)
    places = np.arange(len(x))
    for number in range(4):
        x = model.layer(number, x, places)
        if number in (1, 3):
            leave, stay = of_network(model, f"compression/steps/gates_{number + 1}", x, row, is_visual, places)
            if leave > stay:
                return (1, 3).index(number)
    return 2


@pytest.mark.parametrize(("spec", "decide"), [("visor:policy", by_router), ("dyvte:exits=2-4", by_gates)])
def test_rows_go_where_numpy_says_and_each_group_gives_what_its_plan_gives(spec, decide):
    module, params = field.model(spec)
    tree = unflatten_dict(params, sep="/")
    rows = [field.encoded((3, 4 + seed % 3, 5), 16, seed) for seed in range(8)] + [field.encoded((9,), 16)]
    images = [field.pixels(len(row.image_tokens), seed) for seed, row in enumerate(rows)]
    batch, counts = field.prepared(module, rows, images)[0], room_for(rows).counts(0)
    found = list(groups(tree, batch, counts, module, None, room=2))
    names, chosen = [end.spec for end in module.method.fork.ends], np.full(len(rows), -1)
    for group in found:
        sizes = group.module.method.plan.sizes(counts)
        logits, _ = programs.prefill(tree, batch, module=group.module, sizes=sizes, room=2)
        np.testing.assert_allclose(group.found[0][: len(group.rows)], logits[group.rows], atol=field.TOLERANCE, rtol=0)
        chosen[group.rows] = names.index(group.compression)
    assert len(found) > 1
    np.testing.assert_array_equal(chosen, [decide(spec, *one) for one in zip(rows, images, strict=True)])


def test_labels_of_networks_and_exits():
    """0.99 of the probability per word; more than 99 % of the words and less than 1.03 times the loss."""
    largest = Outcome(np.array([-1.0, -1.0, -1.0]), np.array([2, 2, 2]), np.array([2, 2, 2]))
    near = Outcome(-1.0 - 2 * np.array([0.0100, 0.0101, -1.0]), largest.length, largest.agreeing)
    np.testing.assert_array_equal(keeps_network(near, largest), [True, False, True])
    exits = Outcome(np.array([-1.029, -1.031, -1.0]), largest.length, np.array([2, 2, 1]))
    np.testing.assert_array_equal(keeps_exit(exits, largest), [True, False, False])


def test_the_cheapest_plan_that_does_as_well_is_the_right_one():
    """Along a router, and along gates: of rows for which no plan, the second, and the first do as well as the last."""
    does = np.array([[False, False, True], [False, True, True], [True, False, True]])
    router = parse("visor:self=1,cross=2,policy", field.CONFIG)
    assert len(router.fork.ends) == 3
    np.testing.assert_array_equal(policy.right_branches(router, does), [[2], [1], [0]])
    gates = parse("dyvte:exits=2-4", field.CONFIG)
    np.testing.assert_array_equal(policy.right_branches(gates, does), [[1, 1], [1, 0], [0, 1]])
    for method in (router, gates):
        np.testing.assert_array_equal(policy.chosen_plans(method, policy.right_branches(method, does)), [2, 1, 0])


def test_what_is_learned_is_what_the_labels_say():
    """Rows whose features tell them apart are sent where their labels say."""
    spec = "visor:self=1,cross=2,policy"
    module, params = field.model(spec)
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, (60, 1)).astype(np.int32)
    features = rng.normal(0, 0.1, (60, 1, 128)).astype(np.float32)
    features[:, 0, :3] += 4 * np.eye(3)[right[:, 0]]
    names = {path for path in params if "router" in path}
    params = params | {path: rng.normal(0, 0.03, params[path].shape).astype(np.float32) for path in names}
    vlm = VLM(module, params, None, {}, Path(), Prompt())
    trained = policy.train(vlm, names, features[:40], right[:40], steps=60, rate=1e-3, seed=0)
    vlm = replace(vlm, params=params | trained)
    assert (policy.choose(vlm, features[40:]) == right[40:]).mean() > 0.9
