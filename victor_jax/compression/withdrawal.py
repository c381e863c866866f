"""The plan that Victor and VTW share: the visual tokens end at the input of one layer."""

from victor_jax.compression.plan import Cut, Kind, Plan, Positions
from victor_jax.errors import UserError


def withdrawal_plan(depth: int, layer: int, positions: Positions) -> Plan:
    if not 0 <= layer <= depth:
        raise UserError(
            f"layer={layer} is outside the language tower of {depth} layers: choose 0 to {depth} "
            f"({depth} drops nothing)"
        )
    if layer == depth:
        return Plan((depth,), ())
    return Plan((layer, depth - layer), (Cut(Kind.VISUAL, positions),))
