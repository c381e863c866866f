"""The attention of the registers equals what Hugging Face's own layers report of them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the tiny models are built by Hugging Face on torch")

import slow  # noqa: E402
import talking  # noqa: E402
import tiny  # noqa: E402
from tokenizers_tiny import write_sentencepiece  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.analysis.registers import register_attention  # noqa: E402
from victor_jax.errors import UserError  # noqa: E402
from victor_jax.models.sequence import IMAGE as IMAGE_ID  # noqa: E402
from victor_jax.ops.images import normalise  # noqa: E402

IMAGE = talking.picture(0)


def model(folder, language="llama_gqa", **changes):
    config = tiny.config(language, **changes)
    config.text_config.vocab_size = 448
    config.image_token_index = config.image_token_id = 440
    net = tiny.model(config)
    net.save_pretrained(folder)
    write_sentencepiece(folder, legacy=True)
    return net


def theirs(vlm, net, prompt):
    """[layers, M, visual tokens]: registers fed as input embeddings, the whole tower with its attention put out."""
    (row,) = vlm.prompter.ask([prompt], [IMAGE])
    copies = np.where(row.ids == IMAGE_ID, vlm.config.features_per_image, 1)
    ids = np.repeat(np.where(row.ids == IMAGE_ID, tiny.IMAGE_TOKEN, row.ids), copies)
    pixels = np.array(normalise(vlm.prompter.pixels(IMAGE)))[None]
    embeddings, is_visual, _ = slow._inputs(net, ids, pixels, slow.Method(registers=vlm.registers.copy()))
    tower = net.model.language_model
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        out = tower(inputs_embeds=embeddings, output_attentions=True, use_cache=False)
    after = int(is_visual.nonzero().max()) + 1
    rows = range(after, after + len(vlm.registers))
    return np.stack([layer[0].mean(0)[rows][:, is_visual].numpy() for layer in out.attentions])


@pytest.mark.parametrize(
    ("language", "compression", "changes"),
    [
        ("llama_gqa", "victor:registers=5,layer=3", {}),
        ("llama_gqa", "victor:registers=2,layer=4", {"vision_feature_select_strategy": "full"}),
        ("qwen2", "victor:registers=3,layer=1", {}),
        ("mistral_window", "victor:registers=3,layer=2", {}),
    ],
    ids=["grouped heads", "nothing cut, a class token", "biases", "a sliding window"],
)
def test_it_is_the_mean_over_heads_that_hugging_face_puts_out(tmp_path, language, compression, changes):
    net = model(tmp_path, language, **changes)
    vlm = victor_jax.load(tmp_path, compression, dtype="float32", seed=0)
    ours = register_attention(vlm, IMAGE, "What is it?")
    layers, registers = vlm.method.plan.stages[0], vlm.method.registers
    assert ours.shape == (layers, registers, 9)
    assert ours.dtype == np.float32
    expected = theirs(vlm, net, "What is it?")[:layers, :, -9:]
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert 0.05 < ours.sum(axis=-1).max() < 1
    assert ours.std(axis=-1).min() > 1e-4


@pytest.mark.parametrize(
    ("compression", "sentence"),
    [("full", "full has no registers"), ("victor:registers=2,layer=0", "cuts before the first layer")],
)
def test_a_model_whose_registers_see_nothing_says_so(tmp_path, compression, sentence):
    vlm = victor_jax.load(talking.saved(tmp_path / "m", compression), dtype="float32")
    with pytest.raises(UserError, match=sentence):
        register_attention(vlm, IMAGE)
