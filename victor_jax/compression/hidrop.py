"""HiDrop (Wu et al., arXiv 2602.23699): the visual tokens enter late, become fewer, and leave early.

Text runs alone through the first layers; then the visual tokens enter as they came from the projector, at the RoPE
positions that were left free for them. After some of the layers that follow, `keep` of them stay, chosen as in
PyramidDrop. All leave before the last layers. Positions keep their numbers throughout. The paper trains with it in both
stages.

Layers are counted as everywhere here: so many have run. In the authors' code (EIT-NLP/HiDrop) `late_entry_layer` 9 and
`early_exit_layer` 25 name the first layer with and without visual tokens, counted from 1: enter=8 and exit=24 here. Its
`layer_list` 10, 14, 16, 18 counts layers that have run, as `layers` does. The default `keep` is that code's for 64
visual tokens, averaged over 32 layers; 87-10-5-1 is its for 48.

Without ties the paper's differentiable top-k chooses the best, and in that code no gradient passes through it: so the
choice here is a plain one. The code scores as PyramidDrop's does, with the same difference to ours in training.
"""

from victor_jax.compression.plan import Kind, Layers, Method, Plan, Positive
from victor_jax.compression.pyramiddrop import check_cuts, pyramid
from victor_jax.compression.steps import Leave, Return
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig

KEEP = tuple(map(Positive, (215, 10, 5, 1)))


def hidrop(
    config: VLMConfig,
    enter: int = 8,
    layers: tuple[int, ...] = (10, 14, 16, 18),
    keep: tuple[Positive, ...] = KEEP,
    exit: int = 24,
) -> Method:
    depth = config.language.depth
    if not enter < exit <= depth:
        raise UserError(
            f"enter={enter} and exit={exit} do not fit the language tower of {depth} layers: choose an exit up to "
            f"{depth} ({depth} lets nothing leave) and an enter below it (0 enters at once)"
        )
    check_cuts(layers, enter, exit)
    if len(keep) != len(layers) or list(keep) != sorted(keep, reverse=True):
        raise UserError(
            f"keep={'-'.join(map(str, keep))} does not fit layers={'-'.join(map(str, layers))}: give one number for "
            "each of them, none larger than the one before"
        )
    cuts = {layer: Leave(Kind.VISUAL, keep=most) for layer, most in zip(layers, keep, strict=True)}
    alone = (Leave(Kind.VISUAL, park=True), Layers(enter), Return(Kind.VISUAL)) if enter else ()
    after = (Leave(Kind.VISUAL), Layers(depth - exit)) if exit < depth else ()
    return Method(Plan((*alone, *pyramid(enter, cuts, exit), *after)))
