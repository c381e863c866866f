"""Elastic Victor: the number of registers is chosen when the model is asked, any m up to the M of its training.

Victor's registers serve in the number that they were trained in: the paper (arXiv 2410.14072) finds that the first or
last few of M do clearly worse than fewer that were trained anew. So here each row of a training step has a number of
registers drawn from 1, 2, 4 … M, always the first ones, as Matryoshka queries do before the language tower (Hu et al.,
arXiv 2405.19315). Nested registers of Victor are ours; no paper has measured them.

The draw is a row's, not a step's: every step trains all registers and averages over their numbers, and one program per
shape serves all of them. In return a step costs what M registers cost; a draw per step would compile a program for each
number. A checkpoint of M registers serves fewer by the written form alone: `elastic:registers=5,layer=3`.
"""

from victor_jax.compression.plan import Method, Positive
from victor_jax.compression.steps import Positions
from victor_jax.compression.withdrawal import withdrawal
from victor_jax.models.config import VLMConfig


def elastic(config: VLMConfig, registers: Positive, layer: int, positions: Positions = "keep") -> Method:
    plan = withdrawal(config.language.depth, layer, positions)
    return Method(plan, registers=registers, draws=halvings(registers))


def halvings(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and `most` itself."""
    return (*(1 << bit for bit in range((most - 1).bit_length())), most)
