"""The model as users hold it: load a folder, ask it, save it."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from victor_jax.compression.plan import LENGTH_MULTIPLE, Kind, Method, Size, round_up
from victor_jax.compression.spec import parse
from victor_jax.data.batches import build_batch
from victor_jax.data.shapes import Shape
from victor_jax.errors import UserError, join_names
from victor_jax.inference import forks, programs
from victor_jax.inference.ahead import read_ahead
from victor_jax.inference.arrays import encoded_rows, pixels_of_rows
from victor_jax.inference.buckets import Bucketed, in_buckets, in_order, room_for
from victor_jax.inference.devices import check_mesh, mesh_for, place_rows
from victor_jax.inference.forks import Group
from victor_jax.inference.platform import abstract_weights, module_for
from victor_jax.inference.programs import End
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

Prepared = tuple[Batch, Shape]  # and what every row of it has room for, which chooses the program


class Answered(NamedTuple):
    """A batch of answers."""

    texts: list[str]
    compressions: list[str]  # by which each was found; the model's own, but where its method chooses for each row


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
    if mesh is not None:
        check_kind("mesh", mesh, jax.sharding.Mesh, "a mesh of jax")
        check_mesh(mesh)
    device = mesh.devices.flat[0] if mesh is not None else jax.local_devices()[0]
    vlm, checkpoint = outline(
        path, compression, dtype, device.platform, vision=vision, projector=projector, attention=attention, seed=seed
    )
    module, tensors = vlm.module, fresh.with_own(checkpoint, vlm.method, seed)
    mesh = mesh or mesh_for(module, jax.local_devices())
    params = place(abstract_weights(module, mesh or device), tensors, module)
    return replace(vlm, params=params, mesh=mesh, unused_tensors=unused_tensors(tensors, params, module))


def outline(
    path: str | Path,
    compression: str | None,
    dtype: str,
    platform: str,
    *,
    vision: str | Path | None = None,
    projector: str | Path | None = None,
    attention: Choice = "auto",
    seed: int | None = None,
) -> tuple["VLM", Checkpoint]:
    """The model without its weights, and the checkpoint that has them: its prompts and its plan can be looked at, and
    what cannot work is refused, before weights are read."""
    check_kind("dtype", dtype, str, "a text such as bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: known are {', '.join(DTYPES)}")
    if compression is not None:
        check_kind("compression", compression, str, "a text such as victor:registers=8,layer=3")
    if seed is not None:
        check_whole("seed", seed, least=0, most=MOST_SEED)
    checkpoint = open_checkpoint(path, vision, projector, seed or 0)
    method = parse(compression or checkpoint.compression, checkpoint.config)
    module = module_for(checkpoint.config, method, dtype, attention, platform)
    return VLM(module, {}, None, {}, checkpoint.folder, checkpoint.prompt), checkpoint


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
        answers = self.generate_batches(rows, batches, max_new_tokens, sampling=sampling, seeds=seeds, stop=stop)
        return in_order(len(rows), batches, (of_batch.texts for of_batch in answers))

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
    ) -> Iterator[Answered]:
        """As `generate`, for rows of `prompter.ask` and batches of `in_buckets`, of which some may be left out: the
        answers to the rows of each batch. `open` opens what names a picture. While the device answers one batch, the
        pictures of the next are read, and the caller works on the answers to the last."""
        check_whole("max_new_tokens", max_new_tokens)
        check_kind("sampling", sampling, Sampling, "a Sampling")
        chosen, stops = check_seeds(seeds, len(rows)), self.prompter.stops(stop)

        def read(batch: Bucketed) -> tuple[Prepared, Draws | None, int]:
            prepared = self.read([rows[row] for row in batch.filled], batch.shape, batch.pictures, open)
            return prepared, draws_of(sampling, [chosen[row] for row in batch.filled]), len(batch.rows)

        def answer(asked: tuple[Prepared, Draws | None, int]) -> tuple[np.ndarray, list[str]]:
            prepared, draws, known = asked
            found = self._new_tokens(*prepared, max_new_tokens, draws, stops, self.prompter.end_tokens)
            return found[0][:known], found[1][:known]

        for tokens, compressions in read_ahead(answer, read_ahead(read, batches)):
            yield Answered([self.prompter.text(row, stop) for row in tokens], compressions)

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
            return self.read([rows[row] for row in batch.filled], batch.shape, batch.pictures)

        scores = (self._ends(*prepared, programs.log_probability) for prepared in read_ahead(read, batches))
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
        batch, shape = self._from_arrays(input_ids, pixel_values, attention_mask)
        longest = int((batch.sequence.kinds == Kind.TEXT).sum(axis=1).max())
        text_length = min(round_up(longest, LENGTH_MULTIPLE), self.sizes(shape)[-1].stream)
        logits = self._ends(batch, shape, programs.TextLogits(text_length))[:, :longest]
        self._check(np.isfinite(logits).all())
        return logits

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
        return self._new_tokens(*prepared, max_new_tokens, draws, None, self.config.end_tokens)[0]

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

    def prepare(self, rows: Rows[EncodedRow]) -> tuple[Batch, tuple[Size, ...]]:
        """Opens the pictures of encoded rows -> a batch, and its static lengths in the model's own plan."""
        batch, shape = self.read(rows)
        return batch, self.sizes(shape)

    def sizes(self, shape: Shape) -> tuple[Size, ...]:
        return self.method.plan.sizes(shape.counts(self.method.registers))

    def call(self, program: Any, batch: Batch, sizes: tuple[Size, ...], **static: Any) -> Any:
        """program(params, batch, module=…, sizes=…, **static). On a mesh its rows are cut over the batch axes, and more
        rows may come out than went in (`place_rows`)."""
        with self._on_mesh():
            return program(self._tree, self._placed(batch), module=self.module, sizes=sizes, **static)

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _placed(self, rows: Any) -> Any:
        return rows if self.mesh is None else place_rows(rows, self.mesh)

    def read(
        self,
        rows: Rows[EncodedRow],
        shape: Shape | None = None,
        pictures: int | None = None,
        open: Open = open_picture,
    ) -> Prepared:
        """Opens the pictures of encoded rows. `shape` and `pictures`: see Bucketed."""
        shape = shape or room_for(rows)
        return self.prompter.batch(rows, self.method.registers, shape, pictures, open), shape

    @property
    def _tree(self) -> dict[str, Any]:
        return unflatten_dict(self.params, sep="/")

    def _new_tokens(
        self,
        batch: Batch,
        shape: Shape,
        max_new_tokens: int,
        draws: Draws | None,
        stops: np.ndarray | None,
        end_tokens: tuple[int, ...],
    ) -> tuple[np.ndarray, list[str]]:
        """int32 [B, max_new_tokens], and the compression that each row was answered by."""
        answered = []
        for group in self._groups(batch, shape, None, max_new_tokens):
            logits, caches = group.found
            whose = functools.partial(np.take, indices=np.resize(group.rows, len(logits)), axis=0)
            tokens, _ = programs.decode(
                self._tree,
                caches,
                logits,
                self._placed(jax.tree.map(whose, draws)),
                stops,
                module=group.module,
                max_new_tokens=max_new_tokens,
                end_tokens=end_tokens,
                pad_token=self.config.pad_token,
            )
            answered.append((group, tokens, jnp.isfinite(logits).all()))
        found = np.empty((len(batch.targets), max_new_tokens), np.int32)
        compressions = [""] * len(found)
        for group, tokens, is_finite in answered:  # dispatched before the first is waited for
            found[group.rows] = fetch(tokens)[: len(group.rows)]
            for row in group.rows:
                compressions[row] = group.compression
            self._check(is_finite)
        return found, compressions

    def _ends(self, batch: Batch, shape: Shape, end: End) -> np.ndarray:
        """[B, …]: what `end` makes of each row's top."""
        found = [(group.rows, fetch(group.found)[: len(group.rows)]) for group in self._groups(batch, shape, end)]
        rows, arrays = zip(*found, strict=True)
        return np.concatenate(arrays)[np.argsort(np.concatenate(rows))]

    def _groups(self, batch: Batch, shape: Shape, end: End | None, room: int | None = None) -> list[Group]:
        """One of all rows, or one for each plan that rows choose. With no `end`: the logits of the first new token, and
        caches with room for as many."""
        if self.method.fork:
            counts, multiple = shape.counts(self.method.registers), 1
            if self.mesh is not None:
                multiple = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            with self._on_mesh():
                return list(forks.groups(self._tree, batch, counts, self.module, end, room, self._placed, multiple))
        program = programs.prefill if end is None else programs.full_pass
        static = {"room": room} if end is None else {"end": end}
        found = self.call(program, batch, self.sizes(shape), **static)
        return [Group(np.arange(len(batch.targets)), self.compression, self.module, found)]

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
        return build_batch(rows, pixels, self.method.registers, size, shape), shape
