"""Victor (Wen et al., arXiv 2410.14072): M registers after each image read it in the first k layers, then the
visual tokens end. With k = depth nothing ends: registers without dropping, which the paper measures too."""

from victor_jax.compression.plan import Compression, Positions
from victor_jax.compression.withdrawal import withdrawal_plan


def victor(depth: int, registers: int, layer: int, positions: Positions = "keep") -> Compression:
    return Compression(registers=registers, plan=withdrawal_plan(depth, layer, positions))
