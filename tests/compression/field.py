"""What every method of the field must do, on one small model: a test of a method names the ones that it means.

The base model is the same for all methods: a tensor's numbers follow from its name. Programs are few, since compiling
them is what such tests cost.
"""

import zlib
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

import victor_jax
from victor_jax.compression.plan import Method
from victor_jax.compression.spec import parse
from victor_jax.compression.stream import Seen
from victor_jax.data.batches import build_batch
from victor_jax.inference import programs
from victor_jax.inference.buckets import room_for
from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.losses import IGNORE
from victor_jax.ops.rope import Rope
from victor_jax.weights.checkpoint import Checkpoint, expected, own_parameters
from victor_jax.weights.names import OWN
from victor_jax.weights.place import gather
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

TOLERANCE = 1e-5
CONFIG = VLMConfig(
    vision=VisionConfig(32, 48, 4, 2, 16, 4, "quick_gelu", 1e-5),  # 4 x 4 patches
    projector=ProjectorConfig("mlp", bias=True),
    language=LanguageConfig("llama", 64, 96, 6, 4, 2, 16, 100, 1e-5, Rope(10000.0), False, False, None, 1024),
    feature_levels=(3,),
    keep_class_token=False,
    image_token=99,
    pad_token=0,
    end_tokens=(2,),
)
# Two images with text around them, one, none: [3 words, image, 4 words, image, 5 words] and so on.
ROWS = ((3, 4, 5), (2, 6), (9,))
ANSWER = 3  # the last ids of a row that are supervised: its prompt ends before them


def tensors(method: Method, config: VLMConfig = CONFIG) -> dict[str, np.ndarray]:
    """By per-layer name, large enough that logits are of order 1 and attention is far from uniform."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = 1.2 * shape[0] ** -0.5 if name.endswith(("kernel", "head")) else 1.0 if len(shape) == 2 else 0.1
        return (rng.normal(0, scale, shape) + name.endswith("scale")).astype(np.float32)

    return {name: draw(name, leaf.shape) for name, leaf in (expected(config) | own_parameters(config, method)).items()}


@cache
def model(spec: str, config: VLMConfig = CONFIG) -> tuple[VLMModule, dict[str, np.ndarray]]:
    """The module and its parameters by path."""
    method = parse(spec, config)
    module = VLMModule(config, method)
    lazy = {name: from_array(array) for name, array in tensors(method, config).items()}
    return module, {path: gather(path, lazy, module, np.dtype(np.float32)).load() for path in parameters(module)}


def compressed(spec: str, seen: Seen, config: VLMConfig = CONFIG) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What its compressor makes of features [I, P, E], and the compressor's parameters by name."""
    method = parse(spec, config)
    own = {
        name.removeprefix(f"{OWN}compressor/"): array for name, array in tensors(method, config).items() if OWN in name
    }
    module = method.compressor.module(config, jnp.float32)
    return np.asarray(jax.jit(module.apply)({"params": unflatten_dict(own, sep="/")}, seen)), own


def encoded(words: tuple[int, ...], tokens: int, seed: int = 0) -> EncodedRow:
    """So many words, with an image between each two numbers; the last ANSWER ids are supervised."""
    rng = np.random.default_rng((seed, *words))
    ids = [rng.integers(3, 90, count) for count in words]
    ids = np.concatenate([part for count in ids for part in (count, [IMAGE])][:-1]).astype(np.int32)
    targets = np.full_like(ids, IGNORE)
    targets[-ANSWER:] = ids[-ANSWER:]
    return EncodedRow(ids, targets, (tokens,) * (len(words) - 1))


def pixels(images: int, seed: int = 0, config: VLMConfig = CONFIG) -> np.ndarray | None:
    """float32 [images, 3, size, size], or None."""
    size = config.vision.image_size
    drawn = np.random.default_rng(seed).normal(size=(images, 3, size, size)).astype(np.float32)
    return drawn if images else None


def prepared(module: VLMModule, rows: list[EncodedRow], images: list[np.ndarray | None]):
    """A batch and its static sizes."""
    shape, method = room_for(rows), module.method
    batch = build_batch(rows, images, method.registers, module.config.vision.image_size, shape)
    return batch, method.plan.sizes(shape.counts(method.registers))


def logits(spec: str, rows: list[EncodedRow], images: list[np.ndarray | None], config: VLMConfig = CONFIG):
    """float32 [text positions, W] of each row."""
    module, params = model(spec, config)
    batch, sizes = prepared(module, rows, images)
    most = max(row.text_length for row in rows)
    found = programs.full_pass(
        unflatten_dict(params, sep="/"), batch, module=module, sizes=sizes, end=programs.TextLogits(most)
    )
    return [np.asarray(of_row)[: row.text_length] for of_row, row in zip(found, rows, strict=True)]


def unlike_rows(spec: str, config: VLMConfig = CONFIG) -> tuple[list[EncodedRow], list[np.ndarray | None]]:
    tokens = parse(spec, config).tokens_per_image(config)
    rows = [encoded(words, tokens, seed) for seed, words in enumerate(ROWS)]
    return rows, [pixels(len(row.image_tokens), seed, config) for seed, row in enumerate(rows)]


def equals_its_rows_alone(spec: str, config: VLMConfig = CONFIG) -> None:
    """A batch of unlike rows; and the image matters."""
    rows, images = unlike_rows(spec, config)
    together = logits(spec, rows, images, config)
    for row, image, found in zip(rows, images, together, strict=True):
        (alone,) = logits(spec, [row], [image], config)
        np.testing.assert_allclose(found, alone, atol=TOLERANCE, rtol=0)
    (other,) = logits(spec, rows[:1], [images[0] * -1], config)
    assert np.abs(other[-1] - together[0][-1]).max() > 1e-3


def equals_full(spec: str, config: VLMConfig = CONFIG) -> None:
    """At its identity setting a method changes nothing."""
    equals(spec, "full", config)


def equals(spec: str, other: str, config: VLMConfig = CONFIG) -> None:
    rows, images = unlike_rows(spec, config)
    for found, expected_logits in zip(
        logits(spec, rows, images, config), logits(other, rows, images, config), strict=True
    ):
        np.testing.assert_allclose(found, expected_logits, atol=TOLERANCE, rtol=0)


def decoding_equals_a_full_pass(spec: str, config: VLMConfig = CONFIG) -> None:
    """The supervised answers, token by token on the caches, against one pass over prompts and answers."""
    module, params = model(spec, config)
    tree = unflatten_dict(params, sep="/")
    rows, images = unlike_rows(spec, config)
    whole = logits(spec, rows, images, config)
    prompts = [EncodedRow(r.ids[:-ANSWER], np.full_like(r.ids[:-ANSWER], IGNORE), r.image_tokens) for r in rows]
    batch, sizes = prepared(module, prompts, images)
    found, caches = programs.prefill(tree, batch, module=module, sizes=sizes, room=ANSWER)
    decode = jax.jit(partial(module.apply, method=VLMModule.decode))
    for step in range(ANSWER):
        for of_row, expected_logits in zip(np.asarray(found), whole, strict=True):
            np.testing.assert_allclose(of_row, expected_logits[step - ANSWER - 1], atol=TOLERANCE, rtol=0)
        token = np.array([row.ids[step - ANSWER] for row in rows])
        found, caches = decode({"params": tree}, token, caches, np.int32(step))


def learns(spec: str, folder: Path, config: VLMConfig = CONFIG, steps: int = 20) -> None:
    """Its own parameters lower the loss, and go through Orbax and Hugging Face's layout and back."""
    module, params = model(spec, config)
    rows, images = unlike_rows(spec, config)
    batch, sizes = prepared(module, rows, images)
    own = {path: leaf for path, leaf in params.items() if path.startswith(OWN)}
    assert own, f"{spec} has no parameters of its own"
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params: dict[str, jax.Array], own: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        def loss(own: dict[str, jax.Array]) -> jax.Array:
            tree = {"params": unflatten_dict(params | own, sep="/")}
            return module.apply(tree, batch, sizes, 512, method=VLMModule.loss)[0].sum()

        def step(carry, _):
            own, state = carry
            value, gradients = jax.value_and_grad(loss)(own)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(own, updates), state), value

        (own, _), losses = jax.lax.scan(step, (own, optimizer.init(own)), length=steps)
        return own, losses

    trained, losses = jax.device_get(train(params, own))
    assert losses[-1] < losses[0], losses
    still = [path for path in own if np.array_equal(trained[path], own[path])]
    assert not still, f"no gradient reaches {still}"
    arrays = tensors(module.method, config) | trained
    lazy = {name: from_array(array) for name, array in arrays.items()}
    for to in ("orbax", "hf"):
        write_checkpoint(Checkpoint("memory", folder, config, lazy, spec), folder / to, to)
        loaded = victor_jax.load(folder / to, dtype="float32")
        assert loaded.compression == module.method.spec
        for path, leaf in trained.items():
            np.testing.assert_array_equal(loaded.params[path], leaf)
