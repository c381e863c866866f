"""The same shapes in Hugging Face transformers, eager and SDPA: what a user would otherwise run. Needs torch."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from victor_jax.models.config import VLMConfig
from victor_jax.weights.hf_config_writer import hf_config


def hugging_face(
    config: VLMConfig, dtype: str, ids: np.ndarray, pixels: np.ndarray, new_tokens: tuple[int, ...]
) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by peer: the first token, and whole answers, on random weights in our shapes."""
    described = hf_config(config, dtype)
    written = transformers.LlavaConfig(**{k: v for k, v in described.items() if k != "architectures"})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        net = transformers.LlavaForConditionalGeneration._from_config(written, dtype=getattr(torch, dtype)).eval()
        given = torch.tensor(ids), torch.tensor(pixels, dtype=net.dtype)
    return {f"transformers {kind}": _programs(kind, net, *given, new_tokens) for kind in ("eager", "sdpa")}


def _programs(
    attention: str, net: Any, ids: torch.Tensor, pixels: torch.Tensor, new_tokens: tuple[int, ...]
) -> dict[str, Callable[[], Any]]:
    """One net serves both attentions, because two of 7B would not fit beside ours."""
    given = {"input_ids": ids, "pixel_values": pixels, "use_cache": True}
    mask, wait = torch.ones_like(ids), torch.cuda.synchronize if ids.is_cuda else lambda: None

    @torch.inference_mode()
    def prefill() -> None:
        net.set_attn_implementation(attention)
        net(**given, logits_to_keep=1)
        wait()

    @torch.inference_mode()
    def answer(room: int) -> None:
        net.set_attn_implementation(attention)
        length = {"max_new_tokens": room, "min_new_tokens": room, "eos_token_id": None, "pad_token_id": 0}
        net.generate(**given, **length, attention_mask=mask, do_sample=False)
        wait()

    return {"prefill": prefill} | {f"answer {room}": functools.partial(answer, room) for room in new_tokens}
