"""Float32 against Hugging Face with random weights: every tower, logits at every text position, greedy tokens."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import tiny  # noqa: E402

import victor_jax  # noqa: E402

TOLERANCE = 1e-5  # absolute, logits of order 1
STEPS = 32


def models(folder, config):
    """Theirs and ours."""
    net = tiny.model(config)
    net.save_pretrained(folder)
    return net, victor_jax.load(folder, dtype="float32")


def compare(net, vlm, parts=(5, 7), images=1):
    ids, pixels = tiny.prompt(net.config, list(parts)), tiny.pixels(net.config, images) if images else None
    inputs = {"input_ids": torch.tensor(ids)}
    if pixels is not None:
        inputs["pixel_values"] = torch.tensor(pixels)
    with torch.no_grad():
        theirs = net(**inputs).logits.numpy()[0, ids[0] != tiny.IMAGE_TOKEN]
    assert 0.5 < theirs.std() < 2, "logits of order 1, or the tolerance means nothing"
    ours = vlm.logits(ids, pixels)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[0], theirs, atol=TOLERANCE, rtol=0)
    return ids, pixels, inputs


@pytest.mark.parametrize("language", tiny.LANGUAGE)
def test_language_towers(tmp_path, language):
    net, vlm = models(tmp_path, tiny.config(language))
    ids, pixels, inputs = compare(net, vlm)
    mask = torch.ones(ids.shape, dtype=torch.long)
    theirs = net.generate(
        **inputs, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ours = vlm.generate_ids(ids, pixels, max_new_tokens=STEPS)
    np.testing.assert_array_equal(ours, theirs[:, ids.shape[1] :].numpy())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"vision": {"image_size": 14, "patch_size": 4}}, id="size not a multiple of the patch"),
        pytest.param({"vision": {"image_size": 15, "patch_size": 3, "hidden_act": "gelu"}}, id="gelu, 25 patches"),
        pytest.param({"vision": {"image_size": 4, "patch_size": 4, "num_attention_heads": 4}}, id="one patch"),
        pytest.param({"vision_feature_layer": -1}, id="last layer"),
        pytest.param({"vision_feature_layer": [0]}, id="embedding"),
        pytest.param({"vision_feature_layer": 1}, id="first layer, counted from below"),
        pytest.param({"vision_feature_layer": [-2, 0, -3]}, id="several layers joined"),
        pytest.param({"vision_feature_select_strategy": "full"}, id="class token kept"),
        pytest.param({"multimodal_projector_bias": False}, id="projector without bias"),
    ],
)
def test_vision_towers(tmp_path, changes):
    compare(*models(tmp_path, tiny.config(**changes)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return models(tmp_path_factory.mktemp("plain"), tiny.config())


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((4, 3, 6), id="two images with text around"),
        pytest.param((4, 0, 6), id="two images side by side"),
        pytest.param((0, 9, 0), id="image first and last"),
        pytest.param((9,), id="text only"),
    ],
)
def test_arrangements(plain, parts):
    compare(*plain, parts, images=len(parts) - 1)


def test_layers_above_the_feature_are_neither_held_nor_run(tmp_path):
    tiny.saved(tmp_path, vision_feature_layer=-3)
    vlm = victor_jax.load(tmp_path, dtype="float32")
    assert vlm.params["vision/stages_0_0/mlp/up/kernel"].shape[0] == 2  # of 4
    assert not any("post_norm" in name for name in vlm.params)
