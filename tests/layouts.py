"""Checkpoint folders in every layout and spelling, from one tiny Hugging Face model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from safetensors.torch import save_file

from victor_jax.weights.read import open_checkpoint

State = dict[str, torch.Tensor]

# From the names that transformers 5.x has in memory to those of each spelling, by prefix.
SPELLINGS: dict[str, dict[str, str]] = {
    "5.x in memory": {},
    "4.52 in memory": {"model.vision_tower.": "model.vision_tower.vision_model."},
    "5.x on disk": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "4.x on disk": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "original": {
        "model.language_model.": "model.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    },
}
# CLIP heads of 64 channels, as the original layout takes for granted where it carries the tower.
TOWER = {"hidden_size": 128, "num_attention_heads": 2}


def model(language: str = "llama_gqa", seed: int = 0, **changes: Any) -> transformers.LlavaForConditionalGeneration:
    vision = {**TOWER, **changes.pop("vision", {})}
    return tiny.model(tiny.config(language, vision=vision, **changes), seed)


def state(net: torch.nn.Module, spelling: str = "5.x in memory") -> State:
    return respell({key: value.clone() for key, value in net.state_dict().items()}, spelling)


def respell(tensors: State, spelling: str) -> State:
    prefixes = SPELLINGS[spelling]

    def renamed(key: str) -> str:
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        return prefixes.get(old, "") + key.removeprefix(old)

    return {renamed(key): value for key, value in tensors.items()}


def pick(tensors: State, *parts: str) -> State:
    """Those whose key contains one of `parts`."""
    return {key: value for key, value in tensors.items() if any(part in key for part in parts)}


def drop(tensors: State, *parts: str) -> State:
    gone = pick(tensors, *parts)
    return {key: value for key, value in tensors.items() if key not in gone}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    write_config(folder, raw)


def write_safetensors(folder: Path, tensors: State, shards: int = 1) -> None:
    _write_shards(folder, tensors, shards, "model", "safetensors", save_file)


def write_torch(folder: Path, tensors: State, shards: int = 1) -> None:
    _write_shards(folder, tensors, shards, "pytorch_model", "bin", torch.save)


def _write_shards(
    folder: Path, tensors: State, shards: int, stem: str, kind: str, write: Callable[[State, Path], Any]
) -> None:
    if shards == 1:
        write(tensors, folder / f"{stem}.{kind}")
        return
    where = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.{kind}"
        part = dict(list(tensors.items())[i::shards])
        write(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def hf(folder: Path, net: transformers.LlavaForConditionalGeneration, tensors: State | None = None) -> Path:
    """config.json and safetensors of a Hugging Face LLaVA."""
    write_config(folder, net.config.to_dict())
    write_safetensors(folder, state(net, "4.x on disk") if tensors is None else tensors)
    return folder


def original(
    folder: Path,
    net: transformers.LlavaForConditionalGeneration,
    tensors: State | None = None,
    *,
    shards: int = 1,
    **changes: Any,
) -> Path:
    """The layout of liuhaotian: the language model's config.json with mm_* keys, and pickled weights."""
    text = net.config.text_config
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "eos_token_id",
        "tie_word_embeddings",
    )
    raw = {key: getattr(text, key) for key in same if hasattr(text, key)} | {
        "model_type": {"llama": "llava", "mistral": "llava_mistral", "qwen2": "llava_qwen"}[text.model_type],
        "rope_theta": text.rope_parameters["rope_theta"],
        "torch_dtype": "float32",
        "pad_token_id": 0,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": net.config.vision_config.hidden_size,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
    }
    write_config(folder, raw | changes)
    write_torch(folder, state(net, "original") if tensors is None else tensors, shards)
    return folder


def clip(folder: Path, net: transformers.LlavaForConditionalGeneration, whole: bool = False) -> Path:
    """The vision tower alone, or within a whole CLIP, as transformers saves them."""
    config, weights = net.config.vision_config, net.model.vision_tower.state_dict()
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        full = transformers.CLIPModel(transformers.CLIPConfig(vision_config=config.to_dict(), text_config=text))
        full.vision_model.load_state_dict(weights)
        full.save_pretrained(folder)
    else:
        tower = transformers.CLIPVisionModel(config)
        tower.load_state_dict(weights)
        tower.save_pretrained(folder)
    return folder


def language_model(folder: Path, net: transformers.LlavaForConditionalGeneration) -> Path:
    """The language tower alone, as transformers saves it."""
    alone = transformers.AutoModelForCausalLM.from_config(net.config.text_config)
    alone.load_state_dict(respell(pick(state(net), "language_model.", "lm_head."), "original"))
    alone.save_pretrained(folder)
    return folder


def tensors_of(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """What we read from a folder, by our names."""
    return {name: tensor.load() for name, tensor in open_checkpoint(folder, **options).tensors.items()}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, types and bits."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def part(tensors: dict[str, np.ndarray], *parts: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors.items() if name.split("/")[0] in parts}


@torch.no_grad()
def hf_logits(net: torch.nn.Module, ids: np.ndarray, pixels: np.ndarray, image_token: int = tiny.IMAGE_TOKEN) -> Any:
    """Hugging Face's logits of the text positions of one row."""
    out = net(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels)).logits.numpy()
    return out[:, ids[0] != image_token]
