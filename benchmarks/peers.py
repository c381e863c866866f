"""The same shapes in Hugging Face transformers, eager and SDPA: what a user would otherwise run. Needs torch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from victor_jax.models.vlm import VLMModule
from victor_jax.weights.hf_config_writer import hf_config
from victor_jax.weights.names import is_transposed, theirs
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
    prompts: tuple[np.ndarray, np.ndarray],
    new_tokens: tuple[int, ...],
) -> dict[str, Callable[[], Any]]:
    """Programs by name, on our weights: vision and prefill together, and whole answers, for both attentions."""
    config, dtype = module.config, module.dtype.name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.tensor(prompts[0], device=device)
    pixels = torch.tensor(prompts[1], device=device, dtype=getattr(torch, dtype))
    described = hf_config(config, dtype)
    programs: dict[str, Callable[[], Any]] = {}
    for attention in ("eager", "sdpa"):
        written = transformers.LlavaConfig(**{k: v for k, v in described.items() if k != "architectures"})
        written._attn_implementation = attention
        torch.manual_seed(0)
        with torch.device(device):
            net = transformers.LlavaForConditionalGeneration._from_config(written, dtype=getattr(torch, dtype)).eval()
        _fill(net, module, params)
        programs |= _programs(f"transformers {attention}", net, ids, pixels, new_tokens)
    return programs


def _fill(net: Any, module: VLMModule, params: dict[str, jax.Array]) -> None:
    """Our weights in place of random ones; the vision layers that nothing asks for stay as they are."""
    held = net.state_dict()
    for name, tensor in layers_of(params, module).items():
        key = theirs(name, "hf")
        for before, after in IN_MEMORY:
            key = after + key.removeprefix(before) if key.startswith(before) else key
        array = tensor.load().T if is_transposed(name) else tensor.load()
        bits = np.ascontiguousarray(array).view(np.int16 if array.itemsize == 2 else np.int32)
        held[key].copy_(torch.from_numpy(bits).view(held[key].dtype).reshape(held[key].shape))


def _programs(
    name: str, net: Any, ids: torch.Tensor, pixels: torch.Tensor, new_tokens: tuple[int, ...]
) -> dict[str, Callable[[], Any]]:
    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @torch.inference_mode()
    def prefill() -> None:
        net(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        wait()

    def answer(room: int) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
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
            wait()

        return run

    return {f"{name}|prefill": prefill} | {f"{name}|answer {room}": answer(room) for room in new_tokens}
