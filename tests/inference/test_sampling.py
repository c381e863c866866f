"""What is drawn: which tokens may be, against a slow reference and Hugging Face's; how often; and from which seed."""

import logging

import jax
import numpy as np
import pytest
import talking

import victor_jax
from victor_jax import Sampling
from victor_jax.inference.sampling import draw, draws_of

WORDS = 12
DRAWN = 4000
# Of twelve tokens: distinct ones; two and four equal ones around the cuts; one that takes all.
LOGITS = {
    "distinct": np.log([30, 1, 2, 25, 3, 12, 4, 5, 6, 7, 0.5, 8]),
    "ties": np.log([8, 8, 1, 16, 16, 1, 8, 8, 2, 2, 2, 2]),
    "one": np.array([0.0] * 11 + [200.0]),
}
SAMPLINGS = [
    Sampling(1.0),
    Sampling(2.0, top_k=5),
    Sampling(1.0, top_k=3),
    Sampling(1.0, top_p=0.5),
    Sampling(0.7, top_p=0.8, top_k=6),
    Sampling(1.5, top_p=0.0),
    Sampling(1.0, top_k=100),
]
ids = [f"{s.temperature}-{s.top_p}-{s.top_k}" for s in SAMPLINGS]


def chances(logits, sampling):
    """float64 [W], token by token: temperature, then top-k, then top-p."""
    scaled = logits.astype(np.float64) / sampling.temperature
    if sampling.top_k:
        kth = sorted(scaled, reverse=True)[: sampling.top_k][-1]
        scaled = np.where(scaled < kth, -np.inf, scaled)
    share = np.exp(scaled - scaled.max())
    share /= share.sum()
    below = 0.0
    ascending = sorted(range(len(share)), key=lambda token: (scaled[token], token))
    for token in ascending[:-1]:  # the most probable one always stays
        below += share[token]
        if below <= 1 - sampling.top_p:
            share[token] = 0
    return share / share.sum()


draw_many = jax.jit(draw)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=ids)
@pytest.mark.parametrize("name", LOGITS)
def test_tokens_are_drawn_as_often_as_they_should_be(name, sampling):
    """And never one that a filter removed. 4.5 standard deviations of a count: one in 100,000 runs lies outside by
    chance, and seeds are fixed."""
    logits = LOGITS[name].astype(np.float32)
    share = chances(logits, sampling)
    rows = np.tile(logits, (DRAWN, 1))
    drawn = draw_many(rows, draws_of(sampling, range(DRAWN)), 3)
    counts = np.bincount(drawn, minlength=WORDS)
    assert not counts[share == 0].any()
    assert (counts[share > 0.01] > 0).all()
    assert (abs(counts - DRAWN * share) <= 4.5 * np.sqrt(DRAWN * share * (1 - share)) + 1e-3).all()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=ids)
@pytest.mark.parametrize("name", LOGITS)
def test_the_reference_keeps_what_hugging_face_keeps(name, sampling):
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor(LOGITS[name])[None]
    scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    np.testing.assert_allclose(torch.softmax(scores, -1)[0].numpy(), chances(LOGITS[name], sampling), atol=1e-12)


def test_other_values_run_the_same_program_and_rows_may_differ(caplog):
    rows = np.random.default_rng(0).normal(size=(7, WORDS)).astype(np.float32)
    draw_many(rows, draws_of(SAMPLINGS[0], range(7)), 0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for sampling in SAMPLINGS[1:]:
            draw_many(rows, draws_of(sampling, range(7)), 1)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return victor_jax.load(talking.saved(tmp_path_factory.mktemp("talk") / "m"), dtype="float32")


def test_a_row_depends_on_its_seed_and_on_nothing_else_in_the_batch(vlm):
    ids, sampling = np.array([[5, 6, 7, 8], [9, 8, 7, 6], [9, 8, 7, 6]]), Sampling(1.0, top_p=0.9, top_k=40)

    def drawn(rows, seeds):
        return vlm.generate_ids(ids[rows], max_new_tokens=16, sampling=sampling, seeds=seeds)

    together = drawn([0, 1, 2], [5, 6, 7])
    np.testing.assert_array_equal(drawn([1], [6]), together[[1]])
    again = drawn([2, 2, 0], [7, 6, 7])
    np.testing.assert_array_equal(again[:2], together[[2, 1]])
    assert (together[1] != together[2]).any()
    assert (drawn([1, 1, 1], None)[0] != drawn([1, 1, 1], None)[1]).any()


def test_sampling_cools_to_greedy(vlm):
    ids = np.array([[5, 6, 7, 8]])
    greedy = vlm.generate_ids(ids, max_new_tokens=16)
    for sampling in (Sampling(1e-4), Sampling(5e-324), Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.0)):
        np.testing.assert_array_equal(vlm.generate_ids(ids, max_new_tokens=16, sampling=sampling), greedy)
    assert (vlm.generate_ids(ids, max_new_tokens=16, sampling=Sampling(1e300)) != greedy).any()
