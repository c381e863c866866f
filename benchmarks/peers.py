"""The same shapes in Hugging Face transformers, eager and SDPA: what a user would otherwise run. Needs torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from victor_jax.data.templates import VICUNA_SYSTEM
from victor_jax.inference.ahead import read_ahead
from victor_jax.models.config import VLMConfig
from victor_jax.weights.hf_config import hf_dict


def hugging_face(
    config: VLMConfig, dtype: str, ids: np.ndarray, pixels: np.ndarray, new_tokens: tuple[int, ...]
) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by peer: the first token, and whole answers, on random weights in our shapes."""
    described = hf_dict(config, dtype)
    written = transformers.LlavaConfig(**{k: v for k, v in described.items() if k != "architectures"})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        # One net serves both attentions, because two of 7B would not fit beside ours.
        net = transformers.LlavaForConditionalGeneration._from_config(written, dtype=getattr(torch, dtype)).eval()
        given: dict[str, Any] = {"input_ids": torch.tensor(ids), "pixel_values": torch.tensor(pixels, dtype=net.dtype)}

    @torch.inference_mode()
    def run(attention: str, room: int | None) -> None:
        net.set_attn_implementation(attention)
        if room is None:
            net(**given, use_cache=True, logits_to_keep=1)
        else:
            length = {"max_new_tokens": room, "min_new_tokens": room, "eos_token_id": None, "pad_token_id": 0}
            mask = torch.ones_like(given["input_ids"])
            net.generate(**given, **length, attention_mask=mask, do_sample=False, use_cache=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    parts = {"prefill": None} | {f"answer {room}": room for room in new_tokens}
    kinds = ("eager", "sdpa")
    return {f"transformers {kind}": {name: partial(run, kind, room) for name, room in parts.items()} for kind in kinds}


def one_by_one(folder: Path, dtype: str, new_tokens: int) -> Callable[[list[str], list[Path]], list[str]]:
    """(questions, a picture for each) -> answers: a loop over single questions in Vicuna's template, whose inputs the
    processor prepares one ahead in another thread."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net: Any = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    net.to(device)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")

    def read(question: tuple[str, Path]) -> Any:
        text = f"{VICUNA_SYSTEM}USER: <image>\n{question[0]} ASSISTANT:"
        with Image.open(question[1]) as picture:
            return processor(images=[picture], text=[text], return_tensors="pt").to(device, net.dtype)

    @torch.inference_mode()
    def ask(prompts: list[str], pictures: list[Path]) -> list[str]:
        texts = []
        for given in read_ahead(read, zip(prompts, pictures, strict=True)):
            tokens = net.generate(**given, max_new_tokens=new_tokens, do_sample=False)
            said = tokens[0, given["input_ids"].shape[1] :]
            texts.append(processor.decode(said, skip_special_tokens=True).strip())
        return texts

    return ask
