"""The methods whose visual tokens all leave at one layer, and the one whose never do.

Victor (Wen et al., arXiv 2410.14072): M registers after each image read it in the first k layers, then the visual
tokens leave. With k = depth nothing leaves: registers without dropping, which the paper measures too.
VTW, visual tokens withdrawal (Lin et al., arXiv 2405.05803): the same without registers, untrained.
Their search for the layer is `analysis/layer_search.py`.
"""

from victor_jax.compression.plan import Kind, Layers, Method, Plan, Positive
from victor_jax.compression.steps import Leave, Positions
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def full(config: VLMConfig) -> Method:
    return Method(Plan((Layers(config.language.depth),)))


def victor(config: VLMConfig, registers: Positive, layer: int, positions: Positions = "keep") -> Method:
    return Method(withdrawal(config.language.depth, layer, positions), registers=registers)


def vtw(config: VLMConfig, layer: int, positions: Positions = "keep") -> Method:
    return Method(withdrawal(config.language.depth, layer, positions))


def withdrawal(depth: int, layer: int, positions: Positions) -> Plan:
    """The visual tokens leave at the input of layer `layer`."""
    check_layer(layer, depth, lowest=0)
    if layer == depth:
        return Plan((Layers(depth),))
    below = (Layers(layer),) if layer else ()
    return Plan((*below, Leave(Kind.VISUAL, positions=positions), Layers(depth - layer)))


def check_layer(layer: int, depth: int, lowest: int) -> None:
    if not lowest <= layer <= depth:
        raise UserError(
            f"layer={layer} is outside the language tower of {depth} layers: choose {lowest} to {depth} "
            f"({depth} drops nothing)"
        )
