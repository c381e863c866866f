"""Methods that choose a plan for each row answer in groups: nothing but speed may come of it."""

import functools

import jax
import numpy as np
import pytest
import talking

from victor_jax.inference import forks, programs
from victor_jax.inference.forks import Group, group_size
from victor_jax.inference.sampling import Sampling, draws_of
from victor_jax.inference.vlm import VLM, load
from victor_jax.sharding.mesh import make_mesh

PROMPTS = [f"What is {word}?" for word in ("it", "there", "to be seen")] * 2  # three lengths of one program
PICTURES = [*(talking.picture(seed) for seed in range(len(PROMPTS) - 1)), None]
SEEDS = {"visor:policy": 0, "dyvte:exits=1-2": 5}  # of weights under which the rows part


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    @functools.cache
    def saved(compression):
        return talking.saved(tmp_path_factory.mktemp("model") / "saved", compression, seed=SEEDS[compression])

    return saved


@pytest.fixture(scope="module", params=SEEDS)
def vlm(request, saved):
    return load(saved(request.param), dtype="float32")


@pytest.fixture(scope="module")
def router(saved):
    """The first of them, for what does not depend on how many choices there are."""
    return load(saved("visor:policy"), dtype="float32")


def test_a_batch_equals_its_rows_alone(vlm):
    """Token for token; and more than one plan is chosen among the rows with a picture."""
    rows = vlm.prompter.ask(PROMPTS, PICTURES)
    (batch,) = vlm.in_buckets(rows, len(rows))
    (answered,) = vlm.generate_batches(rows, [batch], max_new_tokens=8)
    chosen = {name for row, name in zip(batch.rows, answered.compressions, strict=True) if PICTURES[row]}
    assert len(chosen) > 1
    for row, text in zip(batch.rows, answered.texts, strict=True):
        assert vlm.generate([PROMPTS[row]], [PICTURES[row]], max_new_tokens=8) == [text]


def test_fillers_are_drawn_as_the_row_that_they_copy(router, monkeypatch):
    """With draws of their own they could go on when all rows have ended."""
    rows, seen = router.prompter.ask(PROMPTS, PICTURES), []
    group = Group(np.array([1, 2, 4]), router.compression, router.module, (np.zeros((6, talking.VOCABULARY)), []))

    def decode(params, caches, logits, draws, stops, **static):
        seen.append(draws.seed)
        return np.zeros((len(logits), 2), np.int32), caches

    monkeypatch.setattr(VLM, "_groups", lambda *_: [group])
    monkeypatch.setattr(programs, "decode", decode)
    draws = draws_of(Sampling(temperature=1.0), range(10, 10 + len(rows)))
    router._new_tokens(*router.read(rows), 2, draws, None, ())
    np.testing.assert_array_equal(seen, [[11, 12, 14, 14, 14, 14]])


def test_float32_is_exact_below_a_fork_too(router):
    """As in one pass; GPUs and TPUs would round the factors of its products."""
    batch, shape = router.read(router.prompter.ask(PROMPTS[:1], PICTURES[:1]))
    static = {"module": router.module, "sizes": router.sizes(shape), "room": 2, "fork": router.method.fork}
    lines = forks.to_fork.lower(router._tree, batch, **static).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) > 20
    assert all("HIGHEST" in line for line in products)


def test_scores_and_logits_are_in_the_order_asked(router):
    answers = [f"number {n}" for n in range(len(PROMPTS))]
    together = router.score(PROMPTS, PICTURES, answers)
    alone = [router.score(*([one] for one in row))[0] for row in zip(PROMPTS, PICTURES, answers, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)


def test_rows_cut_over_devices_answer_the_same(router, tmp_path):
    """An odd number of them, which a filler makes even."""
    router.save(tmp_path / "again", "orbax")
    cut = load(tmp_path / "again", dtype="float32", mesh=make_mesh(data=2, devices=jax.devices()[:2]))
    assert cut.compression == router.compression
    found = cut.generate(PROMPTS[:3], PICTURES[:3], max_new_tokens=8)
    assert found == router.generate(PROMPTS, PICTURES, max_new_tokens=8)[:3]


def test_groups_have_few_sizes():
    assert [group_size(n) for n in (1, 3, 5, 7, 8, 9, 11, 13, 16, 17)] == [1, 3, 5, 7, 8, 10, 12, 14, 16, 20]
    assert [group_size(n, 4) for n in (1, 5, 9)] == [4, 8, 12]
