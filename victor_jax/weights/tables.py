"""Tables of lazy tensors under PyTorch keys -> the same under our names, in our layout."""

import math
from pathlib import Path

from victor_jax.errors import UserError, join_names
from victor_jax.weights.names import HEAD, from_torch_name, is_skippable, is_transposed
from victor_jax.weights.tensors import Tensor, reshaped, transposed
from victor_jax.weights.torch_files import read_torch_file

PROJECTOR_FILE = "mm_projector.bin"

Table = dict[str, Tensor]


def by_our_names(
    tensors: Table, source: str, *, clip_folder: bool = False, tied_head: bool = False
) -> tuple[Table, tuple[str, ...]]:
    """-> the table by our names, and the keys that carry nothing we need."""
    table: Table = {}
    skipped, unknown, twice = [], [], []
    for key, tensor in tensors.items():
        name = from_torch_name(key, clip_folder)
        if is_skippable(key, clip_folder) or (tied_head and name == HEAD):  # a tied head is the embedding
            skipped.append(key)
        elif name is None:
            unknown.append(key)
        elif name in table:
            twice.append(key)
        else:
            table[name] = _in_our_layout(name, tensor)
    if unknown:
        raise UserError(f"{source} holds unexpected tensors: {join_names(unknown)}")
    if twice:
        raise UserError(f"{source} holds the same tensor under two spellings: {join_names(twice)}")
    return table, tuple(skipped)


def _in_our_layout(name: str, tensor: Tensor) -> Tensor:
    if name == "vision/patch_embedding/kernel" and len(tensor.shape) == 4 and tensor.shape[1] == 3:
        tensor = reshaped(tensor, (tensor.shape[0], math.prod(tensor.shape[1:])))
    return transposed(tensor) if is_transposed(name) and len(tensor.shape) == 2 else tensor


def read_projector(path: Path) -> Table:
    """A mm_projector.bin, as the original's first training stage writes it."""
    table, _ = by_our_names(read_torch_file(path), str(path))
    others = [name for name in table if not name.startswith("projector/")]
    if others or not table:
        raise UserError(f"{path} is not a projector: it holds {join_names(others) or 'nothing'}")
    return table
