"""Tiny random models, built by Hugging Face's classes and saved by their own save_pretrained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # models this small gain nothing by more, and idle threads spin while other workers compute

IMAGE_TOKEN = 250
LANGUAGE: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 4},
    "llama_gqa": {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 24},
    "llama_tied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    },
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None, "head_dim": 16},
    "mistral_window": {
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "head_dim": 16,
    },
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2_tied": {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True},
}


def config(language: str = "llama", vision: dict[str, Any] | None = None, **changes: Any) -> transformers.LlavaConfig:
    text = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        **LANGUAGE[language],
    }
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 4,
        **(vision or {}),
    }
    return transformers.LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=IMAGE_TOKEN,
        **{"tie_word_embeddings": text.get("tie_word_embeddings", False), **changes},
    )


def model(config: transformers.LlavaConfig, seed: int = 0) -> transformers.LlavaForConditionalGeneration:
    """Weights large enough that logits are of order 1 and attention is far from uniform."""
    torch.manual_seed(seed)
    embedding_std = 0.15 if config.text_config.tie_word_embeddings else 1.0  # a tied embedding is the head too
    net = transformers.LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, embedding_std if "embed" in name else 1.2 * weight[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                weight.normal_(1, 0.1)
            else:
                weight.normal_(0, 0.1)
    return net


def saved(folder: Path, language: str = "llama", **changes: Any) -> Path:
    model(config(language, **changes)).save_pretrained(folder)
    return folder


def tokens_per_image(config: transformers.LlavaConfig) -> int:
    tower = config.vision_config
    whole = (tower.image_size // tower.patch_size) ** 2
    return whole + (config.vision_feature_select_strategy == "full")


def prompt(config: transformers.LlavaConfig, parts: list[int], seed: int = 0) -> np.ndarray:
    """int [1, T]: runs of random text of the given lengths with one image between each two."""
    rng = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    for i, length in enumerate(parts):
        if i:
            pieces.append(np.full(tokens_per_image(config), IMAGE_TOKEN))
        pieces.append(rng.integers(3, IMAGE_TOKEN, length))
    return np.concatenate(pieces)[None]


def pixels(config: transformers.LlavaConfig, images: int, seed: int = 0) -> np.ndarray:
    size = config.vision_config.image_size
    return np.random.default_rng(seed).normal(size=(images, 3, size, size)).astype(np.float32)
