"""A converted original checkpoint answers through Hugging Face's AutoProcessor as it stands."""

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the tiny models are built by Hugging Face on torch")

import layouts  # noqa: E402
import tiny  # noqa: E402
import tokenizers_tiny  # noqa: E402
import transformers  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.cli.convert import convert  # noqa: E402
from victor_jax.data.images import preprocess  # noqa: E402
from victor_jax.ops.images import normalise  # noqa: E402


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_an_original_checkpoint_gets_an_image_token_and_a_processor(aspect, tmp_path):
    vocabulary = tokenizers_tiny.sentencepiece_tokenizer(legacy=False).vocab_size
    config = tiny.config(vision={"hidden_size": 64, "num_attention_heads": 1})  # the layout implies heads of 64
    config.text_config.vocab_size = vocabulary
    original = layouts.original(tmp_path / "original", tiny.model(config), image_aspect_ratio=aspect)
    tokenizers_tiny.write_sentencepiece(original, legacy=False)
    convert(original, tmp_path / "hf", "hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    inputs = processor(images=[picture], text=["USER: <image>\nWhat is it? ASSISTANT:"], return_tensors="np")
    as_trained = normalise(preprocess(picture, config.vision_config.image_size, aspect))
    np.testing.assert_allclose(inputs["pixel_values"][0], as_trained, atol=1e-6, rtol=0)
    vlm = victor_jax.load(tmp_path / "hf", dtype="float32")
    assert vlm.config.image_token == vocabulary
    assert (inputs["input_ids"] == vocabulary).sum() == vlm.config.features_per_image
    ours = vlm.logits(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    net = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        theirs = net(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(ours[0], theirs[0, inputs["input_ids"][0] != vocabulary], atol=1e-5, rtol=0)
    assert vlm.config.language.vocabulary % 64 == 0
