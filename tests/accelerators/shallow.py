"""Stage 2 of a model that is 7B in all but depth, which the loops over layers do not care about."""

from dataclasses import replace

from configs import finetune
from victor_jax.analysis import stand_ins
from victor_jax.analysis.compiled import compiled
from victor_jax.cli import plan_pod
from victor_jax.data.shapes import Shape
from victor_jax.models.sizes import SIZES
from victor_jax.training.memory import bytes_of
from victor_jax.training.settings import read
from victor_jax.training.setup import make_run, mesh_of

CONFIG = replace(SIZES["7b"], language=replace(SIZES["7b"].language, depth=4))
SHAPE = Shape(text=256, images=1, visual=CONFIG.features_per_image)


def run_of(topology, parts):
    """On parts of 16 rows."""
    recipe = finetune.get_config("registers=8,layer=1")
    recipe.batch_size, recipe.micro_batches = 16 * parts, parts
    settings = read(recipe.to_dict())
    return make_run(settings, CONFIG, mesh_of(settings, stand_ins.devices(topology)))


def step_of(topology):
    """A run in one part, and the two programs of its step."""
    run = run_of(topology, 1)
    return run, *(compiled(lowered) for lowered, _, _ in plan_pod.programs(run, SHAPE))


def peak_of(run, accumulate, update):
    """Bytes of a device in a step, with the state that the program at work does not touch."""
    return max(accumulate.peak + bytes_of(run.state.optimizer), update.peak + bytes_of(run.frozen))
