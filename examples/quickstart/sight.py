"""Stage 0 of the quickstart: what real users bring, in small. A vision tower that knows digits when it sees them, and
a language tower of random weights.

As CLIP learns to put an image near its text, this tower learns to put each patch near a code: one for the digit that
the patch shows, plus one for its place. The codes are drawn from a seed and thrown away afterwards, as CLIP's text
tower is. The result is a checkpoint folder like any other.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from tqdm import tqdm

from examples.quickstart.digits import PARTS, Canvases, Task, paint, read_task
from examples.quickstart.questions import EMPTY
from victor_jax.compression.withdrawal import full
from victor_jax.errors import exit_status
from victor_jax.models.config import VisionConfig, VLMConfig
from victor_jax.models.sizes import llava
from victor_jax.models.vision import VisionTower
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.images import normalise
from victor_jax.weights.checkpoint import Checkpoint, expected
from victor_jax.weights.place import gather, layers_of
from victor_jax.weights.tensors import Tensor, from_array
from victor_jax.weights.tokenizer import open_tokenizer
from victor_jax.weights.write import write_checkpoint

BATCH, RATE, WARMUP = 512, 3e-3, 0.1  # cells, on however many canvases
STEPS = 1000
DEPTH = 8  # of the language tower
CELLS, UNSEEN = 256_000, 16_000  # on all canvases together, to learn from and to be tested on
FILLED = 0.6  # of the cells, at random: there are no questions here that a canvas must suit
CLASSES, NOTHING = 11, 0  # of patches: those without a digit, then a class for each digit
PLACE = 0.5  # how much of a code is place, how much digit
SHARP = 4.0  # of the choice between codes
PATCH_GAIN = 3.0  # a projected patch weighs about as much as a word


def tiny(task: Task, tokenizer: Any, depth: int = DEPTH) -> VLMConfig:
    """LLaVA's architecture in small; depth: of the language tower."""
    vision = VisionConfig(
        width=48,
        mlp_width=128,
        depth=2,
        heads=4,
        image_size=task.size,
        patch_size=task.cell // task.patches,
        activation="quick_gelu",
        norm_eps=1e-5,
    )
    small = llava(96, 192, depth, vision, head_dim=24)
    return replace(
        small,
        language=replace(small.language, vocabulary=len(tokenizer)),
        feature_levels=(vision.depth,),
        image_token=len(tokenizer),  # the writer gives it a row of its own
        pad_token=tokenizer.pad_token_id,
        end_tokens=(tokenizer.eos_token_id,),
    )


def write_start(
    folder: Path, tokenizer_folder: Path, task: Task, depth: int = DEPTH, seed: int | None = None, steps: int = STEPS
) -> float:
    """The checkpoint that stage 1 starts from; returns the share of unseen digits that the tower knows. The seed (the
    task's) draws the model and the order of its canvases; which digits are unseen, the task's own seed says."""
    config = tiny(task, open_tokenizer(tokenizer_folder), depth)
    seed = task.seed if seed is None else seed
    drawn = draw(config, seed)
    train, test = crowd(task, "train", CELLS), crowd(task, "test", UNSEEN)
    seen, knows = give_sight(config, drawn, train, test, seed, steps)
    write_checkpoint(Checkpoint("drawn", tokenizer_folder, config, drawn | seen), folder, "hf")
    return knows


def crowd(task: Task, part: str, cells: int) -> Canvases:
    """Canvases of the "train" or "test" digits, with many of them on each."""
    rng = np.random.default_rng((task.seed, 8, PARTS.index(part)))
    shape = (cells // task.grid**2, task.grid, task.grid)
    digits = np.where(rng.random(shape) < FILLED, rng.integers(0, 10, shape), EMPTY).astype(np.int8)
    return Canvases(paint(digits, task, part, rng), digits)


def draw(config: VLMConfig, seed: int) -> dict[str, Tensor]:
    """A whole model of random weights that keep the variance of what they carry: it is small, and must learn fast."""
    rng = np.random.default_rng((seed, 5))
    tensors = {}
    for name, leaf in expected(config).items():
        shape = leaf.shape
        if name.endswith("scale"):
            array = np.ones(shape)
        elif name.endswith("bias"):
            array = np.zeros(shape)
        else:
            is_table = name.endswith("embedding")
            array = rng.normal(0, 0.5 if is_table else shape[0] ** -0.5, shape)
            if name.endswith(("o/kernel", "down/kernel")):
                array /= (2 * config.language.depth) ** 0.5
        if name == "projector/linear_2/kernel":
            array = PATCH_GAIN * (array - array.mean(axis=0))  # what GELU adds to all patches alike is taken off
        tensors[name] = from_array(array.astype(np.float32))
    return tensors


def give_sight(
    config: VLMConfig, drawn: dict[str, Tensor], train: Canvases, test: Canvases, seed: int, steps: int = STEPS
) -> tuple[dict[str, Tensor], float]:
    """The vision tower's tensors after `steps` batches, and the share of unseen digits that its patches name."""
    # A loop would keep what the backward pass needs in one array, which is first filled with zeros: twice the time.
    module = VLMModule(config, full(config), layers_per_loop=1)
    tower = VisionTower(config, None, jnp.float32, "xla", module.layers_per_loop)
    paths = [path for path in parameters(module) if path.startswith("vision/")]
    params = {path: jnp.asarray(gather(path, drawn, module, np.dtype(np.float32)).load()) for path in paths}
    codes = draw_codes(config, train.digits.shape[1], seed)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, round(WARMUP * steps), steps))

    def distances(params: dict[str, jax.Array], pixels: jax.Array) -> jax.Array:
        """uint8 [B, size, size] -> [B, P, classes]: how far each patch is from each code of its place."""
        colours = normalise(jnp.broadcast_to(pixels[:, None], (len(pixels), 3, *pixels.shape[1:])))
        looked: Any = tower.apply({"params": unflatten_dict(params, sep="/")["vision"]}, colours)
        seen = looked.features
        alike = jnp.einsum("bpd,pcd->bpc", seen, codes)
        return ((seen**2).sum(axis=-1)[..., None] - 2 * alike + (codes**2).sum(axis=-1)[None]) / codes.shape[-1]

    def loss(params: dict[str, jax.Array], pixels: jax.Array, labels: jax.Array) -> jax.Array:
        far = distances(params, pixels)
        off = jnp.take_along_axis(far, labels[..., None], axis=-1)[..., 0]
        chosen = optax.softmax_cross_entropy_with_integer_labels(-SHARP * far, labels)
        weight = jnp.where(labels == NOTHING, 0.1, 1.0)  # nothing is easily seen
        return (weight * (off + chosen)).sum() / weight.sum()

    @jax.jit
    def step(params: dict[str, jax.Array], moments: Any, pixels: jax.Array, labels: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, pixels, labels)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, changes), moments, value

    labels = patch_labels(train.digits, config)
    moments = optimizer.init(params)
    with tqdm(total=steps, desc="vision tower", unit=" steps") as bar:
        for chosen in _batches(len(labels), max(1, BATCH // train.digits[0].size), steps, seed):
            params, moments, value = step(params, moments, train.pixels[chosen], labels[chosen])
            bar.update()
            if bar.n % 50 == 0:
                bar.set_postfix_str(f"loss {float(value):.3f}")
    named = np.asarray(jax.jit(distances)(params, test.pixels).argmin(axis=-1))
    wanted = patch_labels(test.digits, config)
    right = (named == wanted)[wanted != NOTHING]
    return layers_of({path: params[path] for path in paths}, module), float(right.mean())


def draw_codes(config: VLMConfig, grid: int, seed: int) -> np.ndarray:
    """[P, classes, width]: which digit a patch shows, that it shows one, and where its cell stands."""
    rng = np.random.default_rng((seed, 9))
    width = config.vision.width * len(config.feature_levels)
    side = config.vision.image_size // config.vision.patch_size
    digits = rng.standard_normal((CLASSES, width)) + rng.standard_normal(width)
    digits[NOTHING] = 0
    places = PLACE * rng.standard_normal((2, grid, width))
    row, column = (places - places.mean(axis=1, keepdims=True))[:, np.arange(side) * grid // side]
    codes = (row[:, None] + column[None]).reshape(-1, 1, width) + digits
    return codes.astype(np.float32)


def patch_labels(digits: np.ndarray, config: VLMConfig) -> np.ndarray:
    """digits int [n, grid, grid] -> int32 [n, P]: the class of the cell that each patch's middle lies in."""
    side = config.vision.image_size // config.vision.patch_size
    cell = (2 * np.arange(side) + 1) * digits.shape[1] // (2 * side)
    return (digits[:, cell][:, :, cell].reshape(len(digits), -1) + NOTHING - EMPTY).astype(np.int32)


def _batches(rows: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    rng, order = np.random.default_rng((seed, 6)), np.zeros(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(rows)
        yield order[:size]
        order = order[size:]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.sight", description="Stage 0 of the quickstart.", allow_abbrev=False
    )
    parser.add_argument("data", type=Path, help="what examples.quickstart.digits wrote")
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    parser.add_argument("--depth", type=int, default=DEPTH, help="layers of the language tower")
    parser.add_argument("--seed", type=int, help="of the model (the task's)")
    given = parser.parse_args()

    def command() -> None:
        knows = write_start(given.out, given.data / "tokenizer", read_task(given.data), given.depth, given.seed)
        print(f"It names {knows:.1%} of the digits that it never saw. The language tower is random.")

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
