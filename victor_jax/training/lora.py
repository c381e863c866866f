"""Low-rank additions to the language tower's linear layers: which leaves they are, and how they are merged."""

import numpy as np

from victor_jax.models.layers import Lora
from victor_jax.weights.tensors import Index, Tensor


def is_adapter(path: str) -> bool:
    return path.endswith(("/lora_a", "/lora_b"))


def merged(tensors: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Per-layer tensors with adapters -> without, each kernel with its addition, computed in float32 when read."""
    plain = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for name in tensors:
        if name.endswith("/lora_a"):
            module = name.removesuffix("/lora_a")
            plain[f"{module}/kernel"] = _merged_kernel(
                tensors[f"{module}/kernel"], tensors[name], tensors[f"{module}/lora_b"], lora
            )
    return plain


def _merged_kernel(kernel: Tensor, a: Tensor, b: Tensor, lora: Lora) -> Tensor:
    def read(index: Index) -> np.ndarray:
        rows, columns = index
        rank = slice(0, a.shape[1])
        low = a.read((rows, rank)).astype(np.float32) @ b.read((rank, columns)).astype(np.float32)
        return (kernel.read(index).astype(np.float32) + low * (lora.alpha / lora.rank)).astype(kernel.dtype)

    return Tensor(kernel.shape, kernel.dtype, read)
