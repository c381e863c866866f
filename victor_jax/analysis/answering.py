"""The two programs of an answer, prefill and decode, compiled as `load` and `VLM.generate` compile them."""

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from victor_jax.analysis import flops, traffic
from victor_jax.analysis.collectives import Collective, collectives
from victor_jax.analysis.compiled import Compiled, compiled
from victor_jax.analysis.topology import Chip
from victor_jax.compression.plan import length_of, round_up
from victor_jax.inference import programs
from victor_jax.inference.buckets import room_for
from victor_jax.inference.platform import abstract_weights
from victor_jax.models.sequence import IMAGE, Batch, EncodedRow, Sequence
from victor_jax.models.vlm import VLMModule, parameters


@dataclass(frozen=True)
class Asked:
    """A batch of questions, all of one shape."""

    rows: int
    text: int = 64  # text positions of a row
    images: int = 1  # of a row
    room: int = 128  # new tokens


@dataclass(frozen=True)
class Cost:
    """Of one prefill, or of one new token of every row; on each device."""

    flops: int
    bytes: int  # moved through memory
    collectives: list[Collective]
    copies: list[traffic.Copy]
    # In closed form: what has to be computed, and weights and caches moved once.
    least_flops: float
    least_bytes: float

    def seconds(self, chip: Chip) -> dict[str, float]:
        """At the chip's peaks, by resource."""
        sent = sum(one.wire_bytes for one in self.collectives)
        return {
            "arithmetic": self.flops / chip.flops,
            "memory": self.bytes / chip.bandwidth,
            "links": sent / chip.links,
        }


@dataclass(frozen=True)
class Answering:
    module: VLMModule
    mesh: Mesh | None  # None: a single device
    asked: Asked
    lengths: tuple[int, ...]  # positions of a row in each stage
    prefill: Compiled
    decode: Compiled | None  # None where prefill does not fit: nobody knows then where its results are

    @cached_property
    def of_prefill(self) -> Cost:
        module, asked = self.module, self.asked
        work = flops.Work(asked.rows, self.lengths, asked.rows * asked.images, head=1)
        numbers = sum(math.prod(leaf.shape) for leaf in parameters(module).values())
        weights = numbers * jnp.dtype(module.dtype).itemsize
        cache = flops.cache_bytes(module, asked.rows, self.slots)
        return self._cost(self.prefill, "ENTRY", flops.forward(module, work), weights, cache)

    @cached_property
    def of_token(self) -> Cost:
        module, rows = self.module, self.asked.rows
        assert self.decode is not None
        moved, cache = flops.decode_bytes(module, rows, self.slots), flops.cache_bytes(module, rows, self.slots)
        body = self.decode.program.loop()
        return self._cost(self.decode, body, flops.decode(module, rows, self.slots), moved - cache, cache)

    @property
    def slots(self) -> tuple[int, ...]:
        """Of a row's cache in each stage."""
        return tuple(length + self.asked.room for length in self.lengths)

    def seconds(self, chip: Chip, tokens: int) -> float:
        """That a batch of answers of so many tokens takes at the least, at the chip's peaks."""
        (first, each) = (max(cost.seconds(chip).values()) for cost in (self.of_prefill, self.of_token))
        return first + (tokens - 1) * each

    def _cost(self, program: Compiled, start: str, least: int, weights: int, cache: int) -> Cost:
        """Weights are divided over the tensor axis, rows over data, work and caches over both."""
        data, tensor = (self.mesh.shape["data"], self.mesh.shape["tensor"]) if self.mesh else (1, 1)
        hlo = program.program
        return Cost(
            traffic.flops(hlo, start),
            traffic.moved(hlo, start),
            collectives(hlo, start),
            traffic.copies(hlo, start),
            least / (data * tensor),
            weights / tensor + cache / (data * tensor),
        )


def answering(module: VLMModule, place: Mesh | jax.Device, asked: Asked) -> Answering:
    """Nothing is allocated, nothing runs."""
    method, size = module.method, module.config.vision.image_size
    ids = np.array([0] * asked.text + [IMAGE] * asked.images)
    row = EncodedRow(ids, ids, (method.tokens_per_image(module.config),) * asked.images)
    counts = room_for([row]).counts(method.registers)
    sizes = method.plan.sizes(counts)
    mesh = place if isinstance(place, Mesh) else None
    over_rows = _sharding(place, PartitionSpec(("data", "fsdp")))

    rows = round_up(asked.rows, mesh.shape["data"] if mesh else 1)  # fillers, as `VLM.call` adds them

    def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=over_rows)

    line = of(length_of(counts))
    pixels = of(asked.images, 3, size, size, dtype=jnp.uint8) if asked.images else None
    batch = Batch(Sequence(line, line, line, of()), line, pixels)
    params = unflatten_dict(abstract_weights(module, place), sep="/")

    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        lowered = programs.prefill.lower(params, batch, module=module, sizes=sizes, room=asked.room)
    prefill = compiled(lowered)
    lengths = method.plan.stage_lengths(sizes)
    if not prefill.text:
        return Answering(module, mesh, asked, lengths, prefill, None)
    logits, caches = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        prefill.output_shardings,
    )
    decode = programs.decode.lower(
        params,
        caches,
        logits,
        None,
        None,
        module=module,
        max_new_tokens=asked.room,
        end_tokens=module.config.end_tokens,
        pad_token=module.config.pad_token,
    )
    return Answering(module, mesh, asked, lengths, prefill, compiled(decode))


def _sharding(place: Mesh | jax.Device, spec: PartitionSpec) -> Sharding:
    return NamedSharding(place, spec) if isinstance(place, Mesh) else SingleDeviceSharding(place)
