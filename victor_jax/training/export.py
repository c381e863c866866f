"""The end of a run: the trained model as a checkpoint that `load` and `convert` take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from victor_jax.data.templates import TEMPLATES
from victor_jax.prompt import Prompt
from victor_jax.sharding.mesh import fetch
from victor_jax.training.lora import merged
from victor_jax.training.optimizer import Params
from victor_jax.training.settings import DataSettings
from victor_jax.training.setup import Run, start_tensors
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.place import layers_of
from victor_jax.weights.write import write_checkpoint


def export(run: Run, train: Params, start: Checkpoint, companions: Path, destination: Path) -> None:
    """What was trained in the type it was trained in, all else bit by bit from where the run started.

    Every process takes part in collecting; the first one writes.
    """
    if jax.process_count() > 1:
        whole: Any = ((path, fetch(leaf)) for path, leaf in train.items())
        train = {path: leaf for path, leaf in whole if jax.process_index() == 0}
    if jax.process_index() == 0:
        tensors = start_tensors(run, start) | layers_of(train, run.module)
        if run.module.lora:
            tensors = merged(tensors, run.module.lora)
        spec = run.module.method.spec
        prompt = prompt_taught(run.settings.data)
        checkpoint = replace(start, folder=companions, tensors=tensors, compression=spec, prompt=prompt)
        write_checkpoint(checkpoint, destination, "orbax", lambda _: None)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("model written")


def prompt_taught(data: DataSettings) -> Prompt:
    """How the trained model is to be asked. Captions alone teach no way of asking: the default stands in for them."""
    if TEMPLATES[data.template].captions:
        return Prompt(aspect=data.aspect)
    return Prompt(data.template, data.aspect)
