"""Tokenizer and image processor for a Hugging Face export of a checkpoint that brings a bare tokenizer.

The original layout has no image token: it splits the prompt at the text `<image>`. transformers wants the token in
the tokenizer, and the image processor described in files beside it.
"""

import json
from pathlib import Path
from typing import Any

from victor_jax.models.config import VLMConfig
from victor_jax.weights.tokenizer import has_tokenizer, open_tokenizer

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
# Those of OpenAI's CLIP processor; llava pads images to a square with the mean colour first.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def tokenizer_with_image_token(source: Path) -> Any | None:
    """The source's tokenizer with `<image>` and a padding token; None where it has none."""
    if not has_tokenizer(source):
        return None
    from transformers import AddedToken

    tokenizer = open_tokenizer(source)
    tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, special=True, normalized=False), special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


def write_processor(folder: Path, tokenizer: Any, config: VLMConfig) -> None:
    """The files that AutoProcessor reads, in the spelling that transformers 4.x and 5.x share."""
    tokenizer.save_pretrained(folder)
    size = config.vision.image_size
    image = {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TOKEN,
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": "full" if config.keep_class_token else "default",
        "num_additional_image_tokens": 1,  # the class token: without it transformers counts one patch too few
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n")
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
