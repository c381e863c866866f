"""The slow reference: Hugging Face's own decoder layers called one by one, no cache, one row at a time.

Visual positions are sliced away before layer k. New tokens stand behind the prompt, and all is one full pass.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from tiny import IMAGE_TOKEN, tokens_per_image


@dataclass
class Method:
    layer: int | None = None  # the visual positions end before it; None: never
    registers: Any = None  # [M, D], an array or a parameter
    renumber: bool = False


@torch.no_grad()
def text_logits(
    net: transformers.LlavaForConditionalGeneration, ids: np.ndarray, pixels: np.ndarray | None, method: Method
) -> np.ndarray:
    """ids [T] of one row without padding, pixels [images, 3, h, w] -> [text positions, W]."""
    logits, is_text = top_logits(net, ids, pixels, method)
    return logits[is_text].numpy()


def top_logits(
    net: transformers.LlavaForConditionalGeneration, ids: np.ndarray, pixels: np.ndarray | None, method: Method
) -> tuple[torch.Tensor, torch.Tensor]:
    """[positions that reach the top, W], and which of them are text."""
    x, is_visual, is_text = _inputs(net, ids, pixels, method)
    tower = net.model.language_model
    positions = torch.arange(x.shape[1])[None]
    for i, layer in enumerate(tower.layers):
        if i == method.layer:
            x, positions, is_text = x[:, ~is_visual], positions[:, ~is_visual], is_text[~is_visual]
            if method.renumber:
                positions = torch.arange(x.shape[1])[None]
        out = layer(
            x,
            attention_mask=_mask(positions[0], getattr(net.config.text_config, "sliding_window", None)),
            position_ids=positions,
            position_embeddings=tower.rotary_emb(x, positions),
        )
        x = out[0] if isinstance(out, tuple) else out
    return net.lm_head(tower.norm(x))[0], is_text


def _inputs(
    net: transformers.LlavaForConditionalGeneration, ids: np.ndarray, pixels: np.ndarray | None, method: Method
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Piece by piece: text, the features of an image, the registers after it."""
    per_image = tokens_per_image(net.config)
    features = iter(() if pixels is None else image_features(net, pixels))
    pieces, kinds = [], []
    i = 0
    while i < len(ids):
        if ids[i] == IMAGE_TOKEN and i < len(ids):
            image = next(features, None)
            if image is not None:
                pieces.append(image)
                kinds += ["visual"] * per_image
                i += per_image
                if method.registers is not None:
                    is_array = isinstance(method.registers, np.ndarray)
                    pieces.append(torch.tensor(method.registers) if is_array else method.registers)
                    kinds += ["register"] * len(method.registers)
                continue
        pieces.append(net.get_input_embeddings()(torch.tensor([ids[i]])))
        kinds.append("text")
        i += 1
    of = lambda kind: torch.tensor([k == kind for k in kinds])  # noqa: E731
    return torch.cat(pieces)[None], of("visual"), of("text")


def image_features(net: transformers.LlavaForConditionalGeneration, pixels: np.ndarray) -> torch.Tensor:
    """[images, patches, D]."""
    c = net.config
    states = net.model.vision_tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
    wanted = c.vision_feature_layer if isinstance(c.vision_feature_layer, list) else [c.vision_feature_layer]
    keep = slice(0 if c.vision_feature_select_strategy == "full" else 1, None)
    return net.model.multi_modal_projector(torch.cat([states[layer][:, keep] for layer in wanted], dim=-1))


def _mask(positions: torch.Tensor, window: int | None) -> torch.Tensor:
    behind = positions[:, None] - positions[None, :]
    allowed = behind >= 0
    if window is not None:
        allowed &= behind < window
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
