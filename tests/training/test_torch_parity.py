"""Twenty steps of training equal a plain torch loop over Hugging Face's model: same batches, AdamW and schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import jax  # noqa: E402
import slow  # noqa: E402
import tiny  # noqa: E402

from configs import finetune, pretrain  # noqa: E402
from victor_jax.inference.arrays import encoded_rows  # noqa: E402
from victor_jax.models.sequence import Batch, kind_counts, lay_out  # noqa: E402
from victor_jax.ops.images import CLIP_MEAN, CLIP_STD  # noqa: E402
from victor_jax.ops.losses import IGNORE  # noqa: E402
from victor_jax.sharding.mesh import make_mesh, rows_on_mesh  # noqa: E402
from victor_jax.training import settings, setup  # noqa: E402
from victor_jax.training.optimizer import learning_rate  # noqa: E402
from victor_jax.weights.place import place  # noqa: E402

STEPS, ROWS, RATE = 20, 4, 3e-3
WARMUP, DECAY = 0.17, 0.5  # 3.4 steps, rounded up; enough decay to be seen in the loss
CONFIG = tiny.config("llama_gqa")
REGISTERS = 3


def rows_of(step):
    """Four rows of a batch: ids, and the first supervised position; text before and after one image."""
    rng = np.random.default_rng(step)
    rows = []
    for row in range(ROWS):
        before, after = rng.integers(1, 5), rng.integers(4, 12)
        ids = tiny.prompt(CONFIG, [before, after], seed=1000 * step + row)[0]
        rows.append((ids, len(ids) - after + rng.integers(0, 3)))
    pixels = rng.integers(0, 255, (ROWS, 1, 3, 12, 12), np.uint8)
    return rows, pixels


def as_floats(pixels):
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.astype(np.float32) / 255 - mean) / std


def our_batch(step, config, registers):
    """The batch, and the positions of each kind in its rows."""
    rows, pixels = rows_of(step)
    encoded = []
    for ids, first in rows:
        (row,) = encoded_rows(ids[None], None, config, tokens_per_image=9)
        is_supervised = np.arange(len(row.ids)) >= first - 8  # one id stands for the image
        encoded.append(replace(row, targets=np.where(is_supervised, row.ids, IGNORE)))
    return Batch(*lay_out(encoded, registers), pixels), kind_counts(encoded, registers)


def our_losses(folder, recipe, compression):
    config = recipe.get_config("full")
    config.init_from, config.compression = str(folder), compression
    config.batch_size, config.micro_batches, config.dtype, config.optimizer.learning_rate = ROWS, 1, "float32", RATE
    config.optimizer.warmup_ratio, config.optimizer.weight_decay = WARMUP, DECAY
    run_settings = settings.read(config)
    start = setup.open_start(run_settings)
    run = setup.make_run(run_settings, start.config, make_mesh(devices=jax.devices()[:1]))
    tensors = setup.start_tensors(run, start)
    train, frozen = setup.trained_params(run, tensors), place(run.frozen, tensors, run.module)
    registers = np.asarray(train["compression/registers"]) if "compression/registers" in train else None
    state, losses = setup.first_state(run, train), []
    with jax.set_mesh(run.mesh):
        for step in range(STEPS):
            batch, counts = our_batch(step, start.config, run.module.method.registers)
            part, sizes = rows_on_mesh(batch, run.mesh), run.module.method.plan.sizes(counts)
            rate = learning_rate(run_settings.optimizer, step, STEPS)
            sums, _ = run.accumulate(state.train, frozen, run.zeros(), part, step, 0, sizes=sizes)
            state, metrics = run.update(state, sums, np.float32(rate))
            losses.append(float(metrics["loss"]))
    return losses, registers


def torch_losses(recipe, method, row_loss):
    net = tiny.model(CONFIG)
    trained = list(net.model.multi_modal_projector.parameters())
    if recipe is finetune:
        trained += [*net.model.language_model.parameters(), *net.lm_head.parameters()]
    if method.registers is not None:
        method.registers = torch.nn.Parameter(torch.tensor(method.registers))
        trained.append(method.registers)
    for weight in net.parameters():
        weight.requires_grad_(any(weight is one for one in trained))
    # As Hugging Face's Trainer groups them: norms and biases do not decay; the registers are no part of its model.
    plain = [one for name, one in net.named_parameters() if "norm" in name or name.endswith("bias")]
    plain += [method.registers] if method.registers is not None else []
    decayed = [weight for weight in trained if not any(weight is one for one in plain)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    warmup = math.ceil(WARMUP * STEPS)

    def rate(step):
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for step in range(STEPS):
        rows, pixels = rows_of(step)
        parts = [
            row_loss(net, ids, first, as_floats(image), method)
            for (ids, first), image in zip(rows, pixels, strict=True)
        ]
        loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def summed(logits, ids, first):
    """Loss of the tokens from `first` on, each predicted by the position before it, which is text here."""
    wanted = torch.tensor(ids[first:])
    return torch.nn.functional.cross_entropy(logits[-len(wanted) - 1 : -1], wanted, reduction="sum"), len(wanted)


def hugging_face(net, ids, first, image, method):
    logits = net(input_ids=torch.tensor(ids)[None], pixel_values=torch.tensor(image)).logits[0]
    return summed(logits, ids, first)


def layer_by_layer(net, ids, first, image, method):
    logits, _ = slow.top_logits(net, ids, image, method)
    return summed(logits, ids, first)


@pytest.mark.parametrize("recipe", [pretrain, finetune], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize(
    ("compression", "layer", "row_loss"),
    [("full", None, hugging_face), (f"victor:registers={REGISTERS},layer=2", 2, layer_by_layer)],
    ids=["full", "victor"],
)
def test_twenty_steps_equal_torch(tmp_path, recipe, compression, layer, row_loss):
    tiny.model(CONFIG).save_pretrained(tmp_path)
    ours, registers = our_losses(tmp_path, recipe, compression)
    theirs = torch_losses(recipe, slow.Method(layer=layer, registers=registers), row_loss)
    assert len(set(ours)) == STEPS
    assert max(abs(a - b) for a, b in zip(ours[1:], ours, strict=False)) > 1e-2, "the loss moves"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
