"""The real training step, lowered for a mesh whose devices need not exist: what plans of pods compile."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from victor_jax.data.shapes import Shape
from victor_jax.training.settings import Settings
from victor_jax.training.setup import Run, abstract_part, make_run, size, sizes_of


@dataclass(frozen=True)
class LoweredStep:
    run: Run
    parts: tuple[Shape, ...]
    lengths: tuple[tuple[int, ...], ...]  # of each part: the static length of each stage
    lowered: jax.stages.Lowered


def lower_step(settings: Settings, mesh: Mesh, parts: tuple[Shape, ...]) -> LoweredStep:
    """The step for batches whose parts have these shapes; nothing is allocated, nothing is read."""
    run = make_run(settings, size(settings), mesh, total_steps=1000)
    sizes = sizes_of(run, parts)
    lengths = tuple(run.module.method.plan.stage_lengths(of_part) for of_part in sizes)
    batch = tuple(abstract_part(run, part) for part in parts)
    number = jax.ShapeDtypeStruct((), "int32")
    with jax.set_mesh(mesh):
        lowered = run.step.lower(run.state, run.frozen, batch, number, sizes=sizes)  # type: ignore[attr-defined]
    return LoweredStep(run, parts, lengths, lowered)
