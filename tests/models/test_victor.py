"""Victor and VTW against the slow reference, and what must hold of any plan."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import slow  # noqa: E402
import tiny  # noqa: E402

import victor_jax  # noqa: E402

TOLERANCE = 1e-5
STEPS = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(language="llama_gqa"):
        if language not in made:
            made[language] = tmp_path_factory.mktemp(language)
            config = tiny.config("mistral_window" if language == GAP else language)
            if language == GAP:
                config.text_config.sliding_window = 16
            net = tiny.model(config)
            net.save_pretrained(made[language])
            made[language] = (made[language], net)
        return made[language]

    return folder


def load(folder, compression, seed=0):
    return victor_jax.load(folder, compression, dtype="float32", seed=seed)


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


@pytest.mark.parametrize(("language", "compression", "method"), CASES)
def test_equals_the_slow_reference(folders, language, compression, method):
    folder, net = folders(language)
    vlm = load(folder, compression)
    method = slow.Method(**method, registers=vlm.registers)
    ids, pixels = tiny.prompt(net.config, [5, 4, 6]), tiny.pixels(net.config, 2)
    theirs = slow.text_logits(net, ids[0], pixels, method)
    assert 0.5 < theirs.std() < 2
    np.testing.assert_allclose(vlm.logits(ids, pixels)[0], theirs, atol=TOLERANCE, rtol=0)
    tokens = vlm.generate_ids(ids, pixels, max_new_tokens=STEPS)[0].tolist()
    reference = slow.greedy(net, ids[0], pixels, method, STEPS)
    ended = reference.index(2) + 1 if 2 in reference else STEPS  # ours pads after the end token
    assert tokens[:ended] == reference[:ended]


def test_decode_logits_equal_a_full_pass(folders):
    """Prefill and decode through both caches, step by step, against logits() of the grown prompt."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from victor_jax.inference.programs import prefill
    from victor_jax.models.vlm import VLMModule

    folder, net = folders()
    vlm = load(folder, "victor:registers=4,layer=2")
    ids, pixels = tiny.prompt(net.config, [5, 6]), tiny.pixels(net.config, 1)
    batch, shape = vlm._from_arrays(ids, pixels, None)
    sizes = vlm.sizes(shape)
    logits, caches = vlm.call(prefill, batch, sizes, room=6)
    below, above = vlm.method.plan.stage_lengths(sizes)
    assert [cache and cache.positions.shape[1] for cache in caches] == [below + 6, None, above + 6]
    assert above < below
    grown = ids
    for step in range(6):
        token = np.array([7 + step])
        grown = np.concatenate([grown, token[None]], axis=1)
        logits, caches = vlm.module.apply(
            {"params": unflatten_dict(vlm.params, sep="/")},
            jnp.asarray(token),
            caches,
            jnp.int32(step),
            method=VLMModule.decode,
        )
        np.testing.assert_allclose(logits[0], vlm.logits(grown, pixels)[0, -1], atol=TOLERANCE, rtol=0)


def test_layer_at_the_top_is_full(folders):
    folder, net = folders()
    ids, pixels = tiny.prompt(net.config, [5, 6]), tiny.pixels(net.config, 1)
    np.testing.assert_array_equal(
        load(folder, "vtw:layer=4").logits(ids, pixels), load(folder, "full").logits(ids, pixels)
    )


def test_positions_matter(folders):
    """Guards against a dead switch: keep and renumber differ with an image, and agree without one."""
    folder, net = folders()
    keep, renumber = (load(folder, f"vtw:layer=2{more}") for more in ("", ",positions=renumber"))
    ids, pixels = tiny.prompt(net.config, [5, 6]), tiny.pixels(net.config, 1)
    assert np.abs(keep.logits(ids, pixels) - renumber.logits(ids, pixels)).max() > 1e-3
    text = tiny.prompt(net.config, [9])
    np.testing.assert_array_equal(keep.logits(text), renumber.logits(text))


def test_text_only_rows_know_nothing_of_the_method(folders):
    folder, net = folders()
    text = tiny.prompt(net.config, [9])
    full = load(folder, "full").logits(text)
    np.testing.assert_allclose(load(folder, "victor:registers=4,layer=2").logits(text), full, atol=1e-6)


def test_cut_before_the_first_layer_is_blind(folders):
    folder, net = folders()
    vlm = load(folder, "vtw:layer=0")
    ids = tiny.prompt(net.config, [5, 6])
    first, second = (vlm.logits(ids, tiny.pixels(net.config, 1, seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_registers_reach_the_text(folders):
    """Other registers, other logits after the image; the text before it does not see them."""
    folder, net = folders()
    ids, pixels = tiny.prompt(net.config, [5, 6]), tiny.pixels(net.config, 1)
    first, second = (load(folder, "victor:registers=4,layer=2", seed=seed).logits(ids, pixels)[0] for seed in (0, 1))
    np.testing.assert_array_equal(first[:5], second[:5])
    assert np.abs(first[5:] - second[5:]).max(axis=1).min() > 1e-4
