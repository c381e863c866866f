"""The tokenizer of a checkpoint folder, whatever its layout; and with the image processor, for a Hugging Face export.

The original layout has no image token: it splits the prompt at the text `<image>`. transformers wants the token in
the tokenizer, and the image processor described in files beside it.
"""

from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.ops.images import CLIP_MEAN, CLIP_STD
from victor_jax.weights.folder import read_json, write_json
from victor_jax.weights.orbax_format import MODEL_TYPE

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedConfig  # takes seconds

    # transformers asks config.json for the kind of tokenizer and warns of our format, which names none.
    file = folder / "config.json"
    is_ours = file.exists() and read_json(file).get("model_type") == MODEL_TYPE
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **({"config": PreTrainedConfig()} if is_ours else {}))
        tokenizer("a")  # fields of tokenizer_config.json are looked at when a text is encoded
        return tokenizer
    except Exception as error:  # of a damaged file its readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"no tokenizer could be read from {folder} ({reason}): copy its files again") from None


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


def write_processor(folder: Path, tokenizer: Any, config: VLMConfig, aspect: str) -> None:
    """The files that AutoProcessor reads, in the spelling that transformers 4.x and 5.x share."""
    tokenizer.save_pretrained(folder)
    size = config.vision.image_size
    image = {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_pad": aspect == "pad",
        **{f"do_{step}": True for step in ("convert_rgb", "resize", "center_crop", "rescale", "normalize")},
        "size": {"shortest_edge": size},
        "resample": 3,
        "crop_size": {"height": size, "width": size},
        "rescale_factor": 1 / 255,
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
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "processor_config.json", processor)
