"""No compression: one stage, every position in every layer."""

from victor_jax.compression.plan import Compression, Plan


def full(depth: int) -> Compression:
    return Compression(registers=0, plan=Plan((depth,), ()))
