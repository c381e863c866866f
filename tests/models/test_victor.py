"""Victor and VTW against the slow reference, and what must hold of any plan."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import slow  # noqa: E402
import tiny  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.inference import programs  # noqa: E402
from victor_jax.models.vlm import VLMModule  # noqa: E402

TOLERANCE = 1e-5
STEPS = 32


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each model once: under a compression, and Hugging Face's own."""

    @functools.cache
    def saved(language):
        config = tiny.config("mistral_window" if language == GAP else language)
        if language == GAP:
            config.text_config.sliding_window = 16
        net, folder = tiny.model(config), tmp_path_factory.mktemp(language)
        net.save_pretrained(folder)
        return folder, net

    @functools.cache
    def load(compression, language="llama_gqa", seed=0):
        folder, net = saved(language)
        return victor_jax.load(folder, compression, dtype="float32", seed=seed), net

    return load


GAP = "a window wider than what stays, narrower than the gap that the visual tokens leave"
CASES = [
    ("llama_gqa", "victor:registers=4,layer=2", {"layer": 2}),
    ("llama_gqa", "victor:registers=4,layer=2,positions=renumber", {"layer": 2, "renumber": True}),
    ("llama_gqa", "victor:registers=1,layer=1", {"layer": 1}),
    ("llama_gqa", "victor:registers=11,layer=3", {"layer": 3}),  # more registers than visual tokens
    ("llama_gqa", "victor:registers=4,layer=4", {}),  # registers, nothing dropped
    ("llama_gqa", "vtw:layer=2", {"layer": 2}),
    ("llama_gqa", "vtw:layer=2,positions=renumber", {"layer": 2, "renumber": True}),
    ("llama_gqa", "vtw:layer=0", {"layer": 0}),
    ("llama3", "victor:registers=4,layer=2", {"layer": 2}),
    ("mistral_window", "victor:registers=4,layer=2", {"layer": 2}),
    ("mistral_window", "victor:registers=4,layer=2,positions=renumber", {"layer": 2, "renumber": True}),
    (GAP, "vtw:layer=2", {"layer": 2}),
    ("qwen2", "victor:registers=4,layer=2", {"layer": 2}),
    ("qwen2", "vtw:layer=3", {"layer": 3}),
]


# Nearly all tests ask the same prompt, two images with text around them, so that they share programs.
CONFIG = tiny.config("llama_gqa")
IDS, PIXELS = tiny.prompt(CONFIG, [5, 4, 6]), tiny.pixels(CONFIG, 2)
TEXT = tiny.prompt(CONFIG, [9])


@pytest.mark.parametrize(("language", "compression", "method"), CASES)
def test_equals_the_slow_reference(loaded, language, compression, method):
    """Logits of the prompt, and new tokens: each is the best one after those before it."""
    vlm, net = loaded(compression, language)
    tokens = vlm.generate_ids(IDS, PIXELS, max_new_tokens=STEPS)[0].tolist()
    said = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens  # ours pads after the end token
    method = slow.Method(**method, registers=vlm.registers)
    theirs = slow.text_logits(net, np.append(IDS, said), PIXELS, method)
    asked = theirs[: -len(said)]
    assert 0.5 < asked.std() < 2
    np.testing.assert_allclose(vlm.logits(IDS, PIXELS)[0], asked, atol=TOLERANCE, rtol=0)
    assert said == theirs[len(asked) - 1 : -1].argmax(axis=1).tolist()


def test_decode_logits_equal_a_full_pass(loaded):
    """Prefill and decode through both caches, step by step, against logits() of the grown prompt."""
    vlm, _ = loaded("victor:registers=4,layer=2")
    batch, shape = vlm._from_arrays(IDS, PIXELS, None)
    sizes = vlm.sizes(shape)
    logits, caches = vlm.call(programs.prefill, batch, sizes, room=STEPS)
    below, above = vlm.method.plan.stage_lengths(sizes)
    assert [cache and cache.positions.shape[1] for cache in caches] == [below + STEPS, None, above + STEPS]
    assert above < below
    new = np.arange(7, 13)
    decode = jax.jit(functools.partial(vlm.module.apply, method=VLMModule.decode))
    found = [logits[0]]
    for step, token in enumerate(new):
        logits, caches = decode({"params": vlm._tree}, token[None], caches, np.int32(step))
        found.append(logits[0])
    whole = vlm.logits(np.append(IDS, new)[None], PIXELS)[0]
    np.testing.assert_allclose(found, whole[-len(found) :], atol=TOLERANCE, rtol=0)


def test_layer_at_the_top_is_full(loaded):
    found, full = (loaded(compression)[0].logits(IDS, PIXELS) for compression in ("vtw:layer=4", "full"))
    np.testing.assert_array_equal(found, full)


def test_positions_matter(loaded):
    """Guards against a dead switch: keep and renumber differ with an image, and agree without one."""
    keep, renumber = (loaded(f"vtw:layer=2{more}")[0] for more in ("", ",positions=renumber"))
    assert np.abs(keep.logits(IDS, PIXELS) - renumber.logits(IDS, PIXELS)).max() > 1e-3
    np.testing.assert_array_equal(keep.logits(TEXT), renumber.logits(TEXT))


def test_text_only_rows_know_nothing_of_the_method(loaded):
    found, full = (loaded(compression)[0].logits(TEXT) for compression in ("victor:registers=4,layer=2", "full"))
    np.testing.assert_allclose(found, full, atol=1e-6)


def test_cut_before_the_first_layer_is_blind(loaded):
    vlm, _ = loaded("vtw:layer=0")
    np.testing.assert_array_equal(vlm.logits(IDS, PIXELS), vlm.logits(IDS, tiny.pixels(CONFIG, 2, seed=1)))


def test_registers_reach_the_text(loaded):
    """Other registers, other logits after the image; the text before it does not see them."""
    first, second = (loaded("victor:registers=4,layer=2", seed=seed)[0].logits(IDS, PIXELS)[0] for seed in (0, 1))
    np.testing.assert_array_equal(first[:5], second[:5])
    assert np.abs(first[5:] - second[5:]).max(axis=1).min() > 1e-4
