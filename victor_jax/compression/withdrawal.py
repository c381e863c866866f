"""The methods whose visual tokens all leave at one layer, and the one whose never do.

Victor (Wen et al., arXiv 2410.14072): M registers after each image read it in the first k layers, then the visual
tokens leave. With k = depth nothing leaves: registers without dropping, which the paper measures too.
The paper compares learned registers with zeros and with the embedding of a word: ours is that both are where learning
starts (`start=zeros`, `word=ID`). Ours too is `route=registers`: text does not attend to visual tokens below layer k
either, so that what it knows of an image came through the registers; those layers then run without a fast kernel.
VTW, visual tokens withdrawal (Lin et al., arXiv 2405.05803): the same without registers, untrained.
Their search for the layer is `analysis/layer_search.py`.
"""

from typing import Literal

from victor_jax.compression.plan import REGISTER_STD, Kind, Layers, Method, Plan, Positive, Token
from victor_jax.compression.steps import Leave, Positions
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def full(config: VLMConfig) -> Method:
    return Method(Plan((Layers(config.language.depth),)))


def victor(
    config: VLMConfig,
    registers: Positive,
    layer: int,
    positions: Positions = "keep",
    start: Literal["drawn", "zeros"] = "drawn",
    word: Token | None = None,
    route: Literal["both", "registers"] = "both",
) -> Method:
    if word is not None and start == "zeros":
        raise UserError(f"start=zeros and word={word} name two starts: give one")
    if word is not None and word >= config.language.vocabulary:
        raise UserError(f"word={word} is no token of a vocabulary of {config.language.vocabulary}: give the id of one")
    std = 0.0 if start == "zeros" else REGISTER_STD
    plan = withdrawal(config.language.depth, layer, positions, barred=route == "registers")
    return Method(plan, registers=registers, register_std=std, word=word)


def vtw(config: VLMConfig, layer: int, positions: Positions = "keep") -> Method:
    return Method(withdrawal(config.language.depth, layer, positions))


def withdrawal(depth: int, layer: int, positions: Positions, barred: bool = False) -> Plan:
    """The visual tokens leave at the input of layer `layer`; below it text does not attend to them where `barred`."""
    check_layer(layer, depth, lowest=0)
    below = (Layers(layer, barred=barred),) if layer else ()
    if layer == depth:
        return Plan(below)
    return Plan((*below, Leave(Kind.VISUAL, positions=positions), Layers(depth - layer)))


def check_layer(layer: int, depth: int, lowest: int) -> None:
    if not lowest <= layer <= depth:
        raise UserError(
            f"layer={layer} is outside the language tower of {depth} layers: choose {lowest} to {depth} "
            f"({depth} drops nothing)"
        )
