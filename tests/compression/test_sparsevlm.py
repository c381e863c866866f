"""SparseVLM against plain numpy, one row at a time, and the grouping against loops."""

from dataclasses import replace

import field
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from flax.traverse_util import unflatten_dict

from victor_jax.compression import sparsevlm
from victor_jax.compression.plan import Kind, Layers
from victor_jax.compression.recycling import Recycle, density_peaks
from victor_jax.compression.spec import parse
from victor_jax.compression.steps import Leave
from victor_jax.compression.stream import Flow, Stream
from victor_jax.errors import UserError
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.models.sizes import SIZES
from victor_jax.ops.losses import IGNORE

RECYCLING = "sparsevlm:keep=4,layers=2,recycle=yes,positions=renumber"


def groups_of(points, number):
    """The centre of each group and its members."""
    distance = np.array([[np.linalg.norm(one - other) for other in points] for one in points]) / points.shape[1] ** 0.5
    density = [np.exp(-np.mean(np.sort(row)[:number] ** 2)) for row in distance]
    apart = []
    for i in range(len(points)):
        denser = [j for j in range(len(points)) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        apart.append(distance[i, denser].min() if denser else distance.max())
    centres = sorted(range(len(points)), key=lambda i: -density[i] * apart[i])[:number]
    nearest = [i if i in centres else min(centres, key=lambda centre: distance[i, centre]) for i in range(len(points))]
    return {centre: [i for i in range(len(points)) if nearest[i] == centre] for centre in centres}


def raters_of(x, is_visual, prompt_end):
    visual = np.flatnonzero(is_visual[: prompt_end + 1])
    words = np.arange(visual[-1] + 1, prompt_end + 1) if len(visual) else np.array([], int)
    alike = np.exp(x[visual] @ x[words].T)
    relevance = (alike / alike.sum(axis=1, keepdims=True)).sum(axis=0)
    return words[relevance >= relevance.mean()] if len(words) else words


def reference(row, images, keep, recycle):
    """`keep`: by the layers that have run. The indices in the input sequence of what reaches the top, and its logits.
    Recycling counts anew."""
    model = plain.Plain()
    x, is_visual = model.inputs(row, images)
    index = positions = np.arange(len(x))
    raters = raters_of(x, is_visual, len(x) - field.ANSWER - 1)
    for number in range(plain.LANGUAGE.depth):
        weights, _ = model.attention(number, x, positions)
        x = model.layer(number, x, positions)
        if number + 1 not in keep or not len(raters):
            continue
        scores = weights[:, np.isin(index, raters)].mean(axis=(0, 1))
        candidates = np.flatnonzero(is_visual)
        ranked, most = candidates[np.argsort(-scores[candidates])], keep[number + 1]
        stays, leaving = np.union1d(np.flatnonzero(~is_visual), ranked[:most]), ranked[most:]
        if recycle and len(leaving):
            recycled = leaving[: int(len(leaving) * 0.3) + 1]
            states = x[recycled]
            for centre, members in groups_of(states, int(len(recycled) / 10) + 1).items():
                x[recycled[centre]] = states[members].mean(axis=0)
                stays = np.union1d(stays, recycled[centre])
        x, is_visual, index = x[stays], is_visual[stays], index[stays]
        positions = np.arange(len(x)) if recycle else index
    return index, model.logits(x)


@pytest.mark.parametrize(
    ("spec", "keep"),
    [
        ("sparsevlm:keep=4,layers=2", {2: 4}),
        ("sparsevlm:keep=9-4,layers=1-2,recycle=yes,positions=renumber", {1: 9, 2: 4}),
    ],
)
def test_equals_the_slow_reference(spec, keep, monkeypatch):
    """A batch of rows with two images, one and none, against each row alone. Rows differ in their blocks of raters;
    recycled means are cut again."""
    monkeypatch.setattr(sparsevlm, "BLOCK", 1)
    plain.equals(spec, lambda row, image: reference(row, image, keep, "recycle" in spec))


def test_groups_equal_loops():
    points, counts, numbers = np.random.default_rng(0).normal(size=(4, 40, 3)), (40, 23, 1, 0), (5, 3, 1, 0)
    means, is_centre = jax.jit(density_peaks)(points.astype(np.float32), np.array(counts), np.array(numbers))
    for row, (count, number) in enumerate(zip(counts, numbers, strict=True)):
        expected = groups_of(points[row, :count], number)
        assert set(np.flatnonzero(is_centre[row])) == set(expected)
        for centre, members in expected.items():
            np.testing.assert_allclose(means[row, centre], points[row, members].mean(axis=0), atol=1e-6)


def test_the_end_of_a_prompt_rates_where_no_word_follows_its_image():
    text, visual = Kind.TEXT, Kind.VISUAL
    kinds = jnp.array([[text, visual, visual, text], [text, text, text, Kind.PADDING]])
    origin = jnp.tile(jnp.arange(4), (2, 1))
    stream = Stream(jnp.ones((2, 4, 3)), kinds, origin, origin)
    flow, _ = jax.jit(lambda flow: sparsevlm.NoteRaters().apply(flow, None, None))(
        Flow(stream, jnp.array([2, 2]), jnp.array([3, 3]))
    )
    np.testing.assert_array_equal(flow.notes["raters"], [[False, False, True, False]] * 2)


def test_decoding_equals_a_full_pass():
    field.decoding_equals_a_full_pass(RECYCLING)


def test_keeping_all_is_full():
    field.equals_full("sparsevlm:keep=40,layers=2,recycle=yes")


def test_a_later_image_is_not_shown_to_earlier_words():
    """And gradients pass, through layers that are computed again."""
    words = np.arange(3, 19, dtype=np.int32)
    ids = np.concatenate([words[:2], [IMAGE], words[:6], [IMAGE], words[:4]])
    targets = np.where(np.isin(np.arange(len(ids)), (6, 7, 8, 12, 13)), ids, IGNORE)  # an answer after each image
    row, image = EncodedRow(ids, targets, (16, 16)), field.pixels(2)
    module, params = field.model(RECYCLING)
    batch, sizes = field.prepared(module, [row], [image])

    @jax.jit
    def first_answer(params, pixels):
        def summed(kernel):
            tree = {"params": unflatten_dict(params | {"projector/linear_2/kernel": kernel}, sep="/")}
            given = batch.replace(pixels=pixels[None])
            logits = replace(module, remat="full").apply(tree, given, sizes, row.text_length)[0]
            return jax.nn.logsumexp(logits[:8], axis=1).sum(), logits

        return jax.grad(summed, has_aux=True)(params["projector/linear_2/kernel"])

    gradient, logits = jax.device_get(first_answer(params, image))
    _, changed = first_answer(params, np.stack([image[0], -image[1]]))
    np.testing.assert_allclose(logits[:8], changed[:8], atol=field.TOLERANCE)
    assert np.abs(logits[-1] - changed[-1]).max() > 1e-3
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_the_plan_is_that_of_the_code():
    plan = parse("sparsevlm", SIZES["7b"]).plan
    assert plan.stages == (2, 1, 3, 1, 8, 1, 16)
    assert [step.count for step in plan.steps if isinstance(step, Layers) and step.score] == [1, 1, 1]
    assert [step for step in plan.steps if isinstance(step, Leave)] == [
        Leave(Kind.VISUAL, keep=most) for most in (300, 200, 118)
    ]
    counts = np.array([[0, 64, 576, 0]])
    assert plan.stage_lengths(plan.sizes(counts)) == (640, 640, 368, 368, 264, 264, 184)
    recycling = parse("sparsevlm:keep=300-200-110,recycle=yes", SIZES["7b"]).plan
    # 83 of 276 in 9 groups, 33 of 109 in 4, 29 of 94 in 3
    assert [counts[0, Kind.VISUAL] for counts in recycled(recycling, counts)] == [309, 204, 113]


def recycled(plan, counts):
    for step in plan.steps:
        if isinstance(step, Recycle):
            counts, _ = step.after(counts, np.zeros_like(counts))
            yield counts


@pytest.mark.parametrize(("fields", "config", "message"), [
    ("", field.CONFIG, "layers=3-7-16 does not fit layers 0 to 6 of the language tower: choose rising .* 1 to 5"),
    ("keep=300-200", SIZES["7b"], "keep=300-200 does not fit layers=3-7-16: give one number for each"),
    ("layers=3-16-7", SIZES["7b"], "layers=3-16-7 does not fit"),
    ("layers=0-7-16", SIZES["7b"], "layers=0-7-16 does not fit"),
    ("keep=300-200-0", SIZES["7b"], "keep=300-200-0 .* must be a whole number from 1"),
    ("recycle=maybe", SIZES["7b"], "recycle=maybe .* must be no or yes"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(fields, config, message):
    with pytest.raises(UserError, match=message):
        parse(f"sparsevlm:{fields}", config)
