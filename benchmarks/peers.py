"""The same shapes in Hugging Face transformers, eager and SDPA: what a user would otherwise run. Needs torch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from victor_jax.models.vlm import VLMModule
from victor_jax.weights.hf_config import hf_dict
from victor_jax.weights.names import is_transposed, to_torch_name
from victor_jax.weights.place import layers_of

# Our export spells tensors as transformers 4.x does; in memory version 5 has moved them.
IN_MEMORY = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.vision_model.", "model.vision_tower."),
)


def hugging_face(
    module: VLMModule,
    params: dict[str, jax.Array],
    asked: tuple[np.ndarray, np.ndarray],
    new_tokens: tuple[int, ...],
) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by peer: the first token, and whole answers, on our weights."""
    config, dtype = module.config, getattr(torch, module.dtype.name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, pixels = torch.tensor(asked[0], device=device), torch.tensor(asked[1], device=device, dtype=dtype)
    described = hf_dict(config, module.dtype.name)
    written = transformers.LlavaConfig(**{k: v for k, v in described.items() if k != "architectures"})
    with torch.device(device):
        net = transformers.LlavaForConditionalGeneration._from_config(written, dtype=dtype).eval()
    _fill(net, module, params)
    return {f"transformers {kind}": _programs(kind, net, ids, pixels, new_tokens) for kind in ("eager", "sdpa")}


def _fill(net: Any, module: VLMModule, params: dict[str, jax.Array]) -> None:
    """Our weights in place of random ones; the vision layers that nothing asks for stay as they are."""
    held = net.state_dict()
    for name, tensor in layers_of(params, module).items():
        key = to_torch_name(name, "hf")
        for before, after in IN_MEMORY:
            key = after + key.removeprefix(before) if key.startswith(before) else key
        array = tensor.load().T if is_transposed(name) else tensor.load()
        bits = np.array(array, order="C").view(np.int16 if array.itemsize == 2 else np.int32)
        held[key].copy_(torch.from_numpy(bits).view(held[key].dtype).reshape(held[key].shape))


def _programs(
    attention: str, net: Any, ids: torch.Tensor, pixels: torch.Tensor, new_tokens: tuple[int, ...]
) -> dict[str, Callable[[], Any]]:
    """One net serves both attentions, because two of 7B would not fit beside ours."""

    @torch.inference_mode()
    def prefill() -> None:
        net.set_attn_implementation(attention)
        net(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        _wait()

    @torch.inference_mode()
    def answer(room: int) -> None:
        net.set_attn_implementation(attention)
        net.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=room,
            min_new_tokens=room,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
        )
        _wait()

    return {"prefill": prefill} | {f"answer {room}": functools.partial(answer, room) for room in new_tokens}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
