"""config.json of checkpoints, in the three layouts. What is taken must be a model: its forward pass can be traced."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from hypothesis import strategies as st

from fuzz import models
from fuzz.property import REFUSALS, Surface
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps
from victor_jax.compression.spec import parse
from victor_jax.data.batches import build_batch
from victor_jax.data.shapes import Shape
from victor_jax.inference import programs
from victor_jax.inference.platform import abstract_weights, module_for
from victor_jax.inference.prompts import TEMPLATES
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE
from victor_jax.weights.read import open_checkpoint

LAYOUTS = ("hf", "llava", "orbax")


@dataclass(frozen=True)
class Config:
    layout: str
    changes: list[Change]
    damage: list[Damage]

    def data(self) -> bytes:
        raw = json.loads((models.folder(self.layout) / "config.json").read_text())
        return damaged(dumps(changed(raw, self.changes)).encode("utf-8", "surrogatepass"), self.damage)


class Configs(Surface):
    name, short = "config.json", 60
    inputs = st.builds(
        Config, st.sampled_from(LAYOUTS), changes, st.one_of(st.just([]), st.just([]), st.just([]), damages)
    )

    def __init__(self):
        self.traced = set()  # what has been traced before

    def prepare(self, given, room):
        copy = models.copied(given.layout, room, "config.json")
        (copy / "config.json").write_bytes(given.data())
        return copy

    def attempt(self, prepared, room):
        return open_checkpoint(prepared)

    def compare(self, prepared, result):
        if isinstance(result, REFUSALS):
            return
        assert result.prompt.template in TEMPLATES
        assert result.dtype == "float32"
        known = result.config, result.compression
        if known not in self.traced:
            trace(*known)
            self.traced.add(known)


def trace(config: Any, compression: str) -> None:
    """As `logits` does, without weights."""
    method = parse(compression, config)
    module = module_for(config, method, "float32", "auto", "cpu")
    tokens = method.tokens_per_image(config)
    row = EncodedRow(np.array([1, IMAGE, 2], np.int32), np.full(3, IGNORE, np.int32), (tokens,))
    shape = Shape(8, 1, tokens)
    size = config.vision.image_size
    batch = build_batch([row], [np.zeros((1, 3, size, size), np.float32)], method.registers, size, shape)
    sizes = method.plan.sizes(shape.counts(method.registers))
    weights = unflatten_dict(abstract_weights(module, jax.devices()[0]), sep="/")
    jax.eval_shape(
        lambda weights: programs.full_pass(weights, batch, module=module, sizes=sizes, end=programs.TextLogits(8)),
        weights,
    )
