"""The model as users hold it: load a folder, ask it, save it."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, Method, Size, round_up
from victor_jax.compression.spec import parse
from victor_jax.data.batches import build_batch
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError, join_names
from victor_jax.inference import programs
from victor_jax.inference.ahead import read_ahead
from victor_jax.inference.arrays import encoded_rows, pixels_of_rows
from victor_jax.inference.buckets import Bucketed, in_buckets, in_order, room_for
from victor_jax.inference.devices import check_mesh, mesh_for, place_rows
from victor_jax.inference.platform import abstract_weights, module_for
from victor_jax.inference.prompts import Open, Pictures, Prompter, open_picture, open_prompter
from victor_jax.inference.sampling import GREEDY, MOST_SEED, Draws, Sampling, check_seeds, draws_of
from victor_jax.limits import check_kind, check_whole
from victor_jax.models.config import VLMConfig
from victor_jax.models.sequence import Batch, EncodedRow
from victor_jax.models.vlm import VLMModule
from victor_jax.ops.attention import Choice
from victor_jax.prompt import Prompt
from victor_jax.sharding.mesh import BATCH, fetch
from victor_jax.weights import fresh
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.place import layers_of, place, unused_tensors
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import Tensor
from victor_jax.weights.write import write_checkpoint

DTYPES = ("bfloat16", "float32", "float16")

Prepared = tuple[Batch, tuple[Size, ...]]  # and the static lengths that choose the program


def load(
    path: str | Path,
    compression: str | None = None,
    dtype: str = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    *,
    vision: str | Path | None = None,
    projector: str | Path | None = None,
    attention: Choice = "auto",
    seed: int | None = None,
) -> "VLM":
    """Any known checkpoint folder, under any compression (default: the one that it was trained with).

    On all devices of this process, unless a mesh says otherwise: its axis `data` shares the rows, `tensor` the weights.
    `vision` and `projector` complete a checkpoint that has none. A compression whose parameters the checkpoint lacks is
    refused, unless a `seed` is given to draw them: answers then mean nothing, but time and memory do.
    """
    check_kind("dtype", dtype, str, "a text such as bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    if compression is not None:
        check_kind("compression", compression, str, "a text such as victor:registers=8,layer=3")
    if seed is not None:
        check_whole("seed", seed, least=0, most=MOST_SEED)
    if mesh is not None:
        check_kind("mesh", mesh, jax.sharding.Mesh, "a mesh of jax")
        check_mesh(mesh)
    device = mesh.devices.flat[0] if mesh is not None else jax.local_devices()[0]
    checkpoint = open_checkpoint(path, vision, projector, seed or 0)
    method = parse(compression or checkpoint.compression, checkpoint.config)
    tensors = fresh.with_own(checkpoint, method, seed)
    module = module_for(checkpoint.config, method, dtype, attention, device.platform)
    mesh = mesh or mesh_for(module, jax.local_devices())
    params = place(abstract_weights(module, mesh or device), tensors, module)
    return VLM(module, params, mesh, unused_tensors(tensors, params, module), checkpoint.folder, checkpoint.prompt)


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
    def method(self) -> Method:
        return self.module.method

    @property
    def compression(self) -> str:
        return self.method.spec

    @property
    def registers(self) -> np.ndarray | None:
        """[M, width], or None."""
        return fetch(self.params[REGISTERS]) if REGISTERS in self.params else None

    @functools.cached_property
    def prompter(self) -> Prompter:
        """Between text and pictures and what the model reads; needs the tokenizer files in `folder`."""
        return open_prompter(self.folder, self.prompt, self.config, self.method.tokens_per_image(self.config))

    def generate(
        self,
        prompts: Rows[str],
        images: Rows[Pictures] | None = None,
        max_new_tokens: int = 128,
        batch_size: int = 16,
        *,
        sampling: Sampling = GREEDY,
        seeds: Rows[int] | None = None,
        stop: Rows[str] = (),
    ) -> list[str]:
        """The answer to each prompt. With each goes a picture (PIL or a path), a list of them, or None.

        A prompt is the question alone: the chat template is the checkpoint's. `<image>` marks each picture; a
        single one may be left out and comes first. An answer ends before the first of the texts in `stop`. One that
        is drawn depends on the seed of its prompt, by default its number, and not on the other prompts.
        """
        rows = self.prompter.ask(prompts, images)
        batches = self.in_buckets(rows, batch_size)
        texts = self.generate_batches(rows, batches, max_new_tokens, sampling=sampling, seeds=seeds, stop=stop)
        return in_order(len(rows), batches, texts)

    def in_buckets(self, rows: Rows[EncodedRow], batch_size: int) -> list[Bucketed]:
        """Which of the encoded rows to answer together. Rows that are cut over devices share no pictures."""
        share = self.mesh is None or all(self.mesh.shape[axis] == 1 for axis in BATCH)
        return in_buckets(rows, batch_size, self.method.registers, share)

    def generate_batches(
        self,
        rows: Rows[EncodedRow],
        batches: Iterable[Bucketed],
        max_new_tokens: int = 128,
        *,
        sampling: Sampling = GREEDY,
        seeds: Rows[int] | None = None,
        stop: Rows[str] = (),
        open: Open = open_picture,
    ) -> Iterator[list[str]]:
        """As `generate`, for rows of `prompter.ask` and batches of `in_buckets`, of which some may be left out: the
        answers to the rows of each batch. `open` opens what names a picture. While the device answers one batch, the
        pictures of the next are read, and the caller works on the answers to the last."""
        check_whole("max_new_tokens", max_new_tokens)
        check_kind("sampling", sampling, Sampling, "a Sampling")
        chosen, stops = check_seeds(seeds, len(rows)), self.prompter.stops(stop)

        def read(batch: Bucketed) -> tuple[Prepared, Draws | None, int]:
            prepared = self.prepare([rows[row] for row in batch.filled], batch.shape, batch.pictures, open)
            return prepared, draws_of(sampling, [chosen[row] for row in batch.filled]), len(batch.rows)

        def answer(asked: tuple[Prepared, Draws | None, int]) -> np.ndarray:
            prepared, draws, known = asked
            return self._new_tokens(*prepared, max_new_tokens, draws, stops, self.prompter.end_tokens)[:known]

        for tokens in read_ahead(answer, read_ahead(read, batches)):
            yield [self.prompter.text(row, stop) for row in tokens]

    def score(
        self,
        prompts: Rows[str],
        images: Rows[Pictures] | None,
        answers: Rows[str],
        batch_size: int = 16,
    ) -> np.ndarray:
        """float32 [prompts]: the log-probability of each answer with its end token, summed: minus training's loss."""
        rows = self.prompter.answer(prompts, images, answers)
        batches = self.in_buckets(rows, batch_size)

        def read(batch: Bucketed) -> Prepared:
            return self.prepare([rows[row] for row in batch.filled], batch.shape, batch.pictures)

        scores = (fetch(self.call(programs.log_probabilities, *prepared)) for prepared in read_ahead(read, batches))
        known = (of_batch[: len(batch.rows)] for of_batch, batch in zip(scores, batches, strict=True))
        found = np.array(in_order(len(rows), batches, known), np.float32)
        self._check(np.isfinite(found).all())
        return found

    def logits(
        self,
        input_ids: np.ndarray,  # int [B, T], each image its placeholder repeated once per feature of the tower
        pixel_values: np.ndarray | None = None,  # float32 [images, 3, height, width], in reading order
        attention_mask: np.ndarray | None = None,  # int [B, T], 0 = padding, on either side
    ) -> np.ndarray:
        """float32 [B, most text positions of a row, vocabulary].

        Entry [b, i] is the logits after the i-th text position of row b; rows with fewer are filled with zeros.
        """
        batch, sizes = self._from_arrays(input_ids, pixel_values, attention_mask)
        longest = int((batch.sequence.kinds == Kind.TEXT).sum(axis=1).max())
        text_length = min(round_up(longest, LENGTH_MULTIPLE), sizes[-1].stream)
        logits = self.call(programs.text_logits, batch, sizes, text_length=text_length)
        self._check(jnp.isfinite(logits).all())
        return fetch(logits)[: len(input_ids), :longest]

    def generate_ids(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        max_new_tokens: int = 128,
        *,
        sampling: Sampling = GREEDY,
        seeds: Rows[int] | None = None,  # of each row; by default its number
    ) -> np.ndarray:
        """int32 [B, max_new_tokens]: the new tokens alone, padded after each row's end."""
        check_whole("max_new_tokens", max_new_tokens)
        prepared = self._from_arrays(input_ids, pixel_values, attention_mask)
        draws = draws_of(sampling, check_seeds(seeds, len(input_ids)))
        return self._new_tokens(*prepared, max_new_tokens, draws, None, self.config.end_tokens)

    def save(self, path: str | Path, format: str = "hf") -> None:
        """A folder in the format `hf`, `llava` or `orbax`, which appears when it is whole."""
        check_kind("path", path, (str, Path), "the path of a folder")
        write_checkpoint(self._checkpoint(), path, format)

    def push(self, repository: str, private: bool = True) -> str:
        """Writes the format `hf` and a model card to `org/name` on the Hugging Face Hub; returns the address."""
        check_kind("repository", repository, str, "org/name")
        from victor_jax.weights.hub import push_checkpoint  # a quarter of a second to import

        return push_checkpoint(self._checkpoint(), repository, private)

    def _checkpoint(self) -> Checkpoint:
        tensors = self.unused_tensors | layers_of(self.params, self.module)
        return Checkpoint("memory", self.folder, self.config, tensors, self.compression, prompt=self.prompt)

    def prepare(
        self,
        rows: Rows[EncodedRow],
        shape: Shape | None = None,
        pictures: int | None = None,
        open: Open = open_picture,
    ) -> Prepared:
        """Opens the pictures of encoded rows. `shape` and `pictures`: see Bucketed."""
        shape = shape or room_for(rows)
        return self.prompter.batch(rows, self.method.registers, shape, pictures, open), self._sizes(shape)

    def call(self, program: Any, batch: Batch, sizes: tuple[Size, ...], **static: Any) -> Any:
        """program(params, batch, module=…, sizes=…, **static). On a mesh its rows are cut over the batch axes, and more
        rows may come out than went in (`place_rows`)."""
        with contextlib.ExitStack() as stack:
            if (mesh := self.mesh) is not None:
                stack.enter_context(jax.set_mesh(mesh))
                batch = place_rows(batch, mesh)
            return program(self._tree, batch, module=self.module, sizes=sizes, **static)

    @property
    def _tree(self) -> dict[str, Any]:
        return unflatten_dict(self.params, sep="/")

    def _new_tokens(
        self,
        batch: Batch,
        sizes: tuple[Size, ...],
        max_new_tokens: int,
        draws: Draws | None,
        stops: np.ndarray | None,
        end_tokens: tuple[int, ...],
    ) -> np.ndarray:
        logits, caches = self.call(programs.prefill, batch, sizes, room=max_new_tokens)
        is_finite = jnp.isfinite(logits).all()  # looked at when the answer is there
        tokens, _ = programs.decode(
            self._tree,
            caches,
            logits,
            draws if self.mesh is None else place_rows(draws, self.mesh),
            stops,
            module=self.module,
            max_new_tokens=max_new_tokens,
            end_tokens=end_tokens,
            pad_token=self.config.pad_token,
        )
        tokens = fetch(tokens)
        self._check(is_finite)
        return tokens[: len(batch.targets)]

    def _check(self, is_finite: Any) -> None:
        """Of what the model computed. To look through all weights when they are read would take a sixth longer."""
        if is_finite:
            return
        tensors = layers_of(self.params, self.module)
        broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor.load().astype(np.float32)).all()]
        why = f"{join_names(broken)} hold NaN or infinity: copy the checkpoint again"
        overflow = f"they overflow in {self.module.dtype.name}: load with dtype='float32'"
        raise UserError(f"{self.folder} gives logits that are not finite: {why if broken else overflow}")

    def _from_arrays(
        self, input_ids: np.ndarray, pixel_values: np.ndarray | None, attention_mask: np.ndarray | None
    ) -> Prepared:
        size = self.config.vision.image_size
        rows = encoded_rows(input_ids, attention_mask, self.config, self.method.tokens_per_image(self.config))
        pixels = pixels_of_rows(pixel_values, rows, size)
        shape = room_for(rows)
        return build_batch(rows, pixels, self.method.registers, size, shape), self._sizes(shape)

    def _sizes(self, shape: Shape) -> tuple[Size, ...]:
        return self.method.plan.sizes(shape.counts(self.method.registers))
