"""The model as users hold it: load a folder, ask it, save it."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, round_up
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.inference import generate, score
from victor_jax.inference.ahead import read_ahead
from victor_jax.inference.prompts import Asked, Pictures, Prompter, batches_of, open_prompter
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import Sequence, image_slots, images_per_row, lay_out
from victor_jax.models.vlm import VLMModule, abstract_params
from victor_jax.ops.attention import Implementation, check_implementation
from victor_jax.prompt import Prompt
from victor_jax.sharding.mesh import fetch
from victor_jax.sharding.mesh import rows as row_sharding
from victor_jax.sharding.rules import sharding_of
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.place import layers_of, place, unused_tensors
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import Tensor
from victor_jax.weights.write import write_checkpoint

DTYPES = ("bfloat16", "float32", "float16")


def load(
    path: str | Path,
    compression: str | None = None,
    dtype: str = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    *,
    vision: str | Path | None = None,
    projector: str | Path | None = None,
    attention: Implementation = "xla",
    seed: int = 0,
) -> "VLM":
    """Any known checkpoint folder, under any compression (default: the one that it was trained with).

    `vision` and `projector` complete a checkpoint that has none; `seed` draws what no checkpoint has, with a
    warning that it is untrained.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    device = mesh.devices.flat[0] if mesh is not None else jax.devices()[0]
    check_implementation(attention, platform=device.platform, dtype=jnp.dtype(dtype))
    checkpoint = open_checkpoint(path, vision, projector, seed)
    method = parse(compression or checkpoint.compression, checkpoint.config.language.depth)
    tensors = fresh.with_registers(checkpoint, method, seed)
    module = VLMModule(checkpoint.config, method, jnp.dtype(dtype), attention)
    single = jax.sharding.SingleDeviceSharding(device)
    abstract = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, dtype, sharding=single if mesh is None else sharding_of(path, leaf.shape, mesh)
        )
        for path, leaf in flatten_dict(abstract_params(module), sep="/").items()
    }
    params = place(abstract, tensors, module)
    return VLM(module, params, mesh, unused_tensors(tensors, params, module), checkpoint.folder, checkpoint.prompt)


@dataclass(frozen=True)
class _Batch:
    """What one call feeds to the programs: arrays, and the static numbers that choose the program."""

    sequence: Sequence
    pixels: np.ndarray | None
    slots: np.ndarray | None
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class VLM:
    module: VLMModule
    params: dict[str, jax.Array]  # by path
    mesh: jax.sharding.Mesh | None
    unused_tensors: dict[str, Tensor]  # tensors of the checkpoint that no layer runs: kept to be saved again
    folder: Path  # where tokenizer and processor lie
    prompt: Prompt  # how it was taught to be asked

    @property
    def config(self) -> VLMConfig:
        return self.module.config

    @property
    def compression(self) -> str:
        return self.module.compression.spec

    @property
    def registers(self) -> np.ndarray | None:
        """[M, width], or None."""
        return fetch(self.params[REGISTERS]) if REGISTERS in self.params else None

    @functools.cached_property
    def prompter(self) -> Prompter:
        """Between text and pictures and what the model reads; needs the tokenizer files in `folder`."""
        return open_prompter(self.folder, self.prompt, self.config)

    def generate(
        self,
        prompts: Rows[str],
        images: Rows[Pictures] | None = None,
        max_new_tokens: int = 128,
        batch_size: int = 16,
    ) -> list[str]:
        """The greedy answer to each prompt. With each goes a picture (PIL or a path), a list of them, or None.

        A prompt is the question alone: the chat template is the checkpoint's. `<image>` stands for each picture; a
        single one may be left out and comes first.
        """
        asked = self.prompter.ask(prompts, images)
        answers = self._answers(batches_of(asked, batch_size), max_new_tokens)
        return list(itertools.chain.from_iterable(answers))[: len(asked)]

    def generate_batches(
        self, batches: Iterable[tuple[Rows[str], Rows[Pictures] | None]], max_new_tokens: int = 128
    ) -> Iterator[list[str]]:
        """As `generate`, for batches that come one by one: while the device answers one, the next is read."""
        return self._answers((self.prompter.ask(prompts, images) for prompts, images in batches), max_new_tokens)

    def score(
        self,
        prompts: Rows[str],
        images: Rows[Pictures] | None,
        answers: Rows[str],
        batch_size: int = 16,
    ) -> np.ndarray:
        """float32 [prompts]: the log-probability of each answer with its end token, summed: minus training's loss."""
        asked = self.prompter.answer(prompts, images, answers)
        scores = [np.zeros(0, np.float32)]
        for rows in batches_of(asked, batch_size):
            batch = self.prompter.batch(rows, self.module.compression.registers)
            lengths = self.module.compression.plan.lengths(batch.sequence.kinds)
            scores.append(fetch(self.call(score.log_probabilities, (batch,), lengths)))
        return np.concatenate(scores)[: len(asked)]

    def logits(
        self,
        input_ids: np.ndarray,  # int [B, T], each image its placeholder repeated once per visual token
        pixel_values: np.ndarray | None = None,  # float32 [images, 3, height, width], in reading order
        attention_mask: np.ndarray | None = None,  # int [B, T], 0 = padding, on either side
    ) -> np.ndarray:
        """float32 [B, most text positions of a row, vocabulary].

        Entry [b, i] is the logits after the i-th text position of row b; rows with fewer are filled with zeros.
        """
        batch = self._batch(input_ids, pixel_values, attention_mask)
        longest = int((np.asarray(batch.sequence.kinds) == Kind.TEXT).sum(axis=1).max())
        out = self._run(
            generate.text_logits,
            batch,
            text_length=min(round_up(longest, LENGTH_MULTIPLE), batch.lengths[-1]),
        )
        return fetch(out)[:, :longest]

    def generate_ids(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> np.ndarray:
        """int32 [B, max_new_tokens]: the new tokens alone, padded after each row's end. Greedy at temperature 0."""
        batch = self._batch(input_ids, pixel_values, attention_mask)
        return self._new_tokens(batch, max_new_tokens, temperature, seed, self.config.end_tokens)

    def save(self, path: str | Path, format: str = "hf") -> None:
        """A folder in the format `hf`, `llava` or `orbax`, which appears when it is whole."""
        tensors = self.unused_tensors | layers_of(self.params, self.module)
        write_checkpoint(
            Checkpoint("memory", self.folder, self.config, tensors, self.compression, prompt=self.prompt),
            path,
            format,
            progress=lambda _: None,
        )

    def _answers(self, batches: Iterable[Rows[Asked]], max_new_tokens: int) -> Iterator[list[str]]:
        def read(rows: Rows[Asked]) -> _Batch:
            arrays = self.prompter.arrays(rows)
            return self._batch(arrays.input_ids, arrays.pixel_values, arrays.attention_mask)

        for batch in read_ahead(read, batches):
            tokens = self._new_tokens(batch, max_new_tokens, 0.0, 0, self.prompter.end_tokens)
            yield [self.prompter.text(row) for row in tokens]

    def _new_tokens(
        self, batch: _Batch, max_new_tokens: int, temperature: float, seed: int, end_tokens: tuple[int, ...]
    ) -> np.ndarray:
        if max_new_tokens < 1 or temperature < 0:
            raise UserError(
                f"max_new_tokens={max_new_tokens} must be at least 1 and temperature={temperature} at least 0"
            )
        logits, caches = self._run(generate.prefill, batch, room=max_new_tokens)
        tokens, _ = generate.decode(
            unflatten_dict(self.params, sep="/"),
            caches,
            logits,
            jnp.float32(temperature),
            jax.random.key(seed),
            module=self.module,
            max_new_tokens=max_new_tokens,
            end_tokens=end_tokens,
            pad_token=self.config.pad_token,
            greedy=temperature == 0,
        )
        return fetch(tokens)

    def _batch(
        self, input_ids: np.ndarray, pixel_values: np.ndarray | None, attention_mask: np.ndarray | None
    ) -> _Batch:
        ids, mask = check_text(input_ids, attention_mask)
        sequence = lay_out(
            ids,
            mask,
            image_token=self.config.image_token,
            tokens_per_image=self.config.tokens_per_image,
            registers=self.module.compression.registers,
        )
        counts = images_per_row(sequence, self.config.tokens_per_image)
        pixels = check_pixels(pixel_values, int(counts.sum()), self.config.vision.image_size)
        slots = None if pixels is None else image_slots(counts)
        return _Batch(sequence, pixels, slots, self.module.compression.plan.lengths(sequence.kinds))

    def _run(self, program: Any, batch: _Batch, **static: int) -> Any:
        return self.call(program, (batch.sequence, batch.pixels, batch.slots), batch.lengths, **static)

    def call(self, program: Any, arrays: tuple[Any, ...], lengths: tuple[int, ...], **static: int) -> Any:
        """program(params, *arrays, module=…, lengths=…, **static), its rows over the mesh if there is one."""
        with contextlib.ExitStack() as stack:
            if (mesh := self.mesh) is not None:
                stack.enter_context(jax.set_mesh(mesh))
                arrays = jax.tree.map(lambda a: jax.device_put(a, row_sharding(mesh, len(a))), arrays)
            return program(unflatten_dict(self.params, sep="/"), *arrays, module=self.module, lengths=lengths, **static)


def check_text(input_ids: np.ndarray, attention_mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask as arrays [B, T], or one error."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"input_ids must be whole numbers [rows, length], got {ids.dtype} {ids.shape}")
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask has shape {mask.shape}, input_ids {ids.shape}: they must be equal")
    if empty := np.flatnonzero(~mask.astype(bool).any(axis=1)).tolist():
        raise UserError(f"attention_mask leaves nothing of row {empty[0]}: give it at least one token")
    return ids, mask


def check_pixels(pixel_values: np.ndarray | None, images: int, size: int) -> np.ndarray | None:
    """Pixels [images, 3, size, size] where the rows hold images, or one error."""
    given = 0 if pixel_values is None else len(pixel_values)
    if given != images:
        raise UserError(f"input_ids hold the tokens of {images} images, pixel_values has {given}")
    if pixel_values is None or images == 0:
        return None
    pixels = np.asarray(pixel_values)
    if pixels.shape[1:] != (3, size, size):
        raise UserError(f"pixel_values has shape {pixels.shape}, the vision tower wants [images, 3, {size}, {size}]")
    return pixels.astype(np.float32, copy=False)
