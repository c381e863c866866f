"""FLOPs of any program as it is traced, before a compiler has seen it: what methods add counts like everything else."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from victor_jax.compression.plan import Size
from victor_jax.models.sequence import Batch
from victor_jax.models.vlm import VLMModule


def matrix_flops(program: Callable[..., Any], *arguments: Any) -> int:
    """Of all matrix products that the results need, two for each multiplication with its addition. Arrays may be
    shapes. A loop without a known length is an error; of the branches of a condition the dearest counts."""
    traced = jax.make_jaxpr(program)(*arguments).jaxpr
    return _flops(dce_jaxpr(traced, [True] * len(traced.outvars))[0])


def prefill_flops(
    module: VLMModule, params: Mapping[str, Any], batch: Batch, sizes: tuple[Size, ...], room: int = 1
) -> int:
    """Of reading prompts, to the first token of their answers. `params`: by path, whatever has a shape."""
    counted = module.clone(implementation="xla")  # kernels hide their products
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, module.dtype) for path, leaf in params.items()}
    return matrix_flops(
        lambda tree, batch: counted.apply({"params": tree}, batch, sizes, room, method=VLMModule.prefill),
        unflatten_dict(shapes, sep="/"),
        batch,
    )


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: JaxprEqn) -> int:
    name, inner = equation.primitive.name, [_flops(jaxpr) for jaxpr in _jaxprs(equation.params)]
    if name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        out: Any = equation.outvars[0].aval
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in summed)
    assert name not in ("conv_general_dilated", "while") or not any(inner), f"{name} is not counted"
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """Those among the parameters of an equation."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _jaxprs(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _jaxprs(one)
