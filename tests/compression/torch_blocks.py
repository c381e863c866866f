"""What the authors of trained compressors take from PyTorch, on our parameters; positions, place by place."""

import math

import numpy as np
import torch
from torch.nn import functional


def tensor(array) -> torch.Tensor:
    return torch.tensor(np.array(array))


def linear(own: dict[str, np.ndarray], name: str, x: torch.Tensor) -> torch.Tensor:
    bias = own.get(f"{name}/bias")
    return functional.linear(x, tensor(own[f"{name}/kernel"]).T, None if bias is None else tensor(bias))


def norm(own: dict[str, np.ndarray], name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], tensor(own[f"{name}/scale"]), tensor(own[f"{name}/bias"]), eps)


def attend(own: dict[str, np.ndarray], heads: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """nn.MultiheadAttention with our parameters: [I, R, E], [I, S, E], [I, S, E] -> [I, R, E]."""
    width = q.shape[-1]
    module = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    of_inputs, of_biases = (
        np.concatenate([own[f"attention/{name}/{leaf}"].T for name in "qkv"]) for leaf in ("kernel", "bias")
    )
    weights = {"in_proj_weight": of_inputs, "in_proj_bias": of_biases}
    weights |= {"out_proj.weight": own["attention/o/kernel"].T, "out_proj.bias": own["attention/o/bias"]}
    module.load_state_dict({name: tensor(array) for name, array in weights.items()})
    return module(q, k, v)[0].detach()


def positions(side: int, width: int) -> torch.Tensor:
    """[side * side, width]."""
    quarter = width // 4
    places = []
    for row in range(side):
        for column in range(side):
            angles = [[at / 10000 ** (i / quarter) for i in range(quarter)] for at in (column, row)]
            places.append([f(a) for of_axis in angles for f in (math.sin, math.cos) for a in of_axis])
    return torch.tensor(places)


def resized(grid: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """[I, P, E] -> [I, side * side, E]."""
    old = math.isqrt(grid.shape[1])
    square = grid.reshape(len(grid), old, old, -1).permute(0, 3, 1, 2)
    return functional.interpolate(square, (side, side), mode=mode).permute(0, 2, 3, 1).flatten(1, 2)
