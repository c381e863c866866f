"""Tensor names: ours, and the spellings of every checkpoint layout, as data.

Ours are per layer, with kernels [in, out]:  language/layers/3/attention/q/kernel.  PyTorch keeps linear weights
[out, in]; a convolution over patches is a linear map of the flattened patch.
"""

import math
import re
from dataclasses import replace

from victor_jax.errors import UserError, join_names
from victor_jax.weights.tensors import Tensor, reshaped, transposed

Table = dict[str, Tensor]  # by our names, or by the keys of a file

HEAD = "language/head"
PATCHES = "vision/patch_embedding/kernel"
OWN = "compression/"  # a method's own parameters, under the names of the module that holds them
REGISTERS = OWN + "registers"


def _modules(ours: str, torch: str, modules: dict[str, str]) -> dict[str, str]:
    """The weight and the bias of each module: by our name -> by PyTorch's."""
    return {
        f"{ours}/{module}/{leaf}": f"{torch}{torch_module}.{'bias' if leaf == 'bias' else 'weight'}"
        for module, torch_module in modules.items()
        for leaf in ("scale" if "norm" in module else "kernel", "bias")
    }


LANGUAGE_LAYER = {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/o": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
VISION_LAYER = {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/o": "self_attn.out_proj",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
# Ours -> PyTorch, without the prefix of the part; # is the number of a layer.
TORCH = {
    "language/embedding": "embed_tokens.weight",
    HEAD: "lm_head.weight",
    **_modules("language", "", {"norm": "norm"}),
    **_modules("language/layers/#", "layers.#.", LANGUAGE_LAYER),
    "vision/class_embedding": "embeddings.class_embedding",
    "vision/position_embedding": "embeddings.position_embedding.weight",
    PATCHES: "embeddings.patch_embedding.weight",
    **_modules("vision", "", {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm"}),  # spelt so in CLIP
    **_modules("vision/layers/#", "encoder.layers.#.", VISION_LAYER),
    **_modules("projector", "", {"linear_1": "linear_1", "linear_2": "linear_2"}),
}
OURS = {(name.split("/")[0], torch_name): name for name, torch_name in TORCH.items()}

# The prefixes of the parts in the two layouts that we write.
PREFIXES = {
    "hf": {
        "vision": "vision_tower.vision_model.",
        "language": "language_model.model.",
        "projector": "multi_modal_projector.",
        "head": "language_model.",
    },
    "llava": {
        "vision": "model.vision_tower.vision_tower.vision_model.",
        "language": "model.",
        "projector": "model.mm_projector.",
        "head": "",
    },
}
# Every spelling that we read: (pattern, part). What follows the prefix is the same in all of them.
_SPELLINGS = [
    (r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)", "vision"),
    (r"(?:model\.)?(?:multi_modal_projector|mm_projector)\.(.+)", "projector"),
    (r"(?:model\.)?(?:language_model\.)?(lm_head\.weight)", "language"),
    (r"(?:model\.)?language_model\.(?:model\.)?(.+)", "language"),
    (r"model\.(.+)", "language"),
]
_CLIP_SPELLINGS = [(r"(?:vision_model\.)?(.+)", "vision")]
# The original layout numbers the projector's layers, and has none where the projector is a single one.
_PROJECTOR = {"0.": "linear_1.", "2.": "linear_2.", "": "linear_1."}

# Tensors that are not needed: buffers that are recomputed, and the text half of a whole CLIP.
_SKIPPABLE = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|embeddings\.position_ids)")
_CLIP_SKIPPABLE = re.compile(r"text_model\..*|(text|visual)_projection\.weight|logit_scale")


def current_name(path: str) -> str:
    """Checkpoints of version 0.1 hold the registers outside `compression/`."""
    parent, _, leaf = path.rpartition("/")
    is_old = leaf == "registers" and OWN not in path
    return f"{parent}/{REGISTERS}".lstrip("/") if is_old else path


def from_torch(tensors: Table, source: str, *, clip_folder: bool = False) -> tuple[Table, tuple[str, ...]]:
    """Tensors under PyTorch keys -> by our names in our layout, and the keys that are not needed."""
    table: Table = {}
    skipped, unknown, twice = [], [], []
    for key, tensor in tensors.items():
        name = from_torch_name(key, clip_folder)
        if _SKIPPABLE.fullmatch(key) or (clip_folder and _CLIP_SKIPPABLE.fullmatch(key)):
            skipped.append(key)
        elif name is None:
            unknown.append(key)
        elif name in table:
            twice.append(key)
        else:
            table[name] = replace(_from_torch_layout(name, tensor), key=key)
    if unknown:
        raise UserError(f"{source} holds unexpected tensors: {join_names(unknown)}")
    if twice:
        raise UserError(f"{source} holds the same tensor under two spellings: {join_names(twice)}")
    return table, tuple(skipped)


def to_torch(tensors: Table, layout: str, linear_projector: bool, patch_size: int) -> Table:
    """The inverse of `from_torch`, in the layout `hf` or `llava`."""
    table = {}
    for name, tensor in tensors.items():
        if is_transposed(name):
            tensor = transposed(tensor)
        if name == PATCHES:
            tensor = reshaped(tensor, (tensor.shape[0], 3, patch_size, patch_size))
        table[to_torch_name(name, layout, linear_projector)] = tensor
    return table


def from_torch_name(key: str, clip_folder: bool = False) -> str | None:
    """A PyTorch key in any known spelling -> our name, or None."""
    for pattern, part in _CLIP_SPELLINGS if clip_folder else _SPELLINGS:
        if match := re.fullmatch(pattern, key):
            rest, layer = match[1], re.search(r"(?<=layers\.)\d+", match[1])
            if part == "projector":
                rest = re.sub(r"^(0\.|2\.|)(?=weight$|bias$)", lambda found: _PROJECTOR[found[0]], rest)
            name = OURS.get((part, re.sub(r"(?<=layers\.)\d+", "#", rest)))
            return name.replace("#", layer[0]) if name and layer else name
    return None


def to_torch_name(name: str, layout: str, linear_projector: bool = False) -> str:
    """Our name -> the key in the layout `hf` or `llava`."""
    torch_name = _without_prefix(name)
    part = name.split("/")[0]
    if part == "projector" and layout == "llava":
        number = next(key for key, module in _PROJECTOR.items() if torch_name.startswith(module))
        torch_name = torch_name.replace(_PROJECTOR[number], "" if linear_projector else number)
    return PREFIXES[layout]["head" if name == HEAD else part] + torch_name


def _without_prefix(name: str) -> str:
    layer = re.search(r"(?<=layers/)\d+", name)
    return TORCH[re.sub(r"(?<=layers/)\d+", "#", name)].replace("#", layer[0] if layer else "")


def with_key(name: str, held: Table, format: str) -> str:
    """`language/head (lm_head.weight)`: for messages, with the key in the file. Of a tensor that is missing, the key
    that it would have beside its neighbours, or the one that we would write."""
    layout = {"hf": "hf", "llava": "llava", "language model + CLIP": "llava"}.get(format)
    if not layout or name.startswith(OWN):
        return name
    if name in held:
        return f"{name} ({held[name].key})"
    for other, tensor in held.items():
        is_near = other.split("/")[0] == name.split("/")[0] and HEAD not in (name, other)
        if is_near and tensor.key.endswith(_without_prefix(other)):
            return f"{name} ({tensor.key.removesuffix(_without_prefix(other))}{_without_prefix(name)})"
    return f"{name} ({to_torch_name(name, layout)})"


def is_transposed(name: str) -> bool:
    """Whether PyTorch keeps this tensor with its output axis first."""
    return name.endswith("/kernel") or name == HEAD


def _from_torch_layout(name: str, tensor: Tensor) -> Tensor:
    if name == PATCHES and len(tensor.shape) == 4 and tensor.shape[1] == 3:
        tensor = reshaped(tensor, (tensor.shape[0], math.prod(tensor.shape[1:])))
    return transposed(tensor) if is_transposed(name) and len(tensor.shape) == 2 else tensor
