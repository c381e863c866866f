"""VTW, visual tokens withdrawal (Lin et al., arXiv 2405.05803): the visual tokens end at layer k, untrained."""

from victor_jax.compression.plan import Compression, Positions
from victor_jax.compression.withdrawal import withdrawal_plan


def vtw(depth: int, layer: int, positions: Positions = "keep") -> Compression:
    return Compression(registers=0, plan=withdrawal_plan(depth, layer, positions))
