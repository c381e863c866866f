"""FastV against Hugging Face's layers, the scoring one with eager attention, one row at a time and without a cache."""

from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, whose CPU build exists for Python 3.11 only")

import slow  # noqa: E402
import talking  # noqa: E402
import tiny  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.compression.plan import Kind, Layers  # noqa: E402
from victor_jax.compression.spec import parse  # noqa: E402
from victor_jax.compression.steps import Leave  # noqa: E402
from victor_jax.errors import UserError  # noqa: E402
from victor_jax.inference import programs  # noqa: E402
from victor_jax.models.sizes import SIZES  # noqa: E402
from victor_jax.models.vlm import VLMModule  # noqa: E402
from victor_jax.ops.losses import IGNORE  # noqa: E402

TOLERANCE = 1e-5
STEPS = 12
LAYER, KEEP = 2, 4


@torch.no_grad()
def reference(net, ids, pixels, prompt_end, renumber=False):
    """ids [T] of one row -> [positions that reach the top, W], the RoPE positions of the visual tokens that stayed."""
    x, is_visual, _ = slow._inputs(net, ids, pixels, slow.Method())
    tower = net.model.language_model
    positions = torch.arange(x.shape[1])[None]
    kept, weights = torch.nonzero(is_visual)[:, 0], None
    for i, layer in enumerate(tower.layers):
        if i == LAYER:
            scores = weights[0].mean(dim=0)[prompt_end]
            best = kept[scores[kept].argsort(descending=True, stable=True)[:KEEP]]
            stays = ~is_visual
            stays[best] = True
            kept = torch.nonzero(is_visual & stays)[:, 0]
            x, positions = x[:, stays], positions[:, stays]
            if renumber:
                positions = torch.arange(x.shape[1])[None]
        mask = slow._mask(positions[0], getattr(net.config.text_config, "sliding_window", None))
        rotary = tower.rotary_emb(x, positions)
        _, weights = layer.self_attn(
            hidden_states=layer.input_layernorm(x), attention_mask=mask, position_embeddings=rotary
        )
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        x = x[0] if isinstance(x, tuple) else x
    return net.lm_head(tower.norm(x))[0], kept.tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(language):
        if language not in made:
            path = tmp_path_factory.mktemp(language)
            net = tiny.model(tiny.config(language))
            net.save_pretrained(path)
            net.model.language_model.set_attn_implementation("eager")
            made[language] = path, net
        return made[language]

    return folder


@pytest.mark.parametrize(
    ("language", "positions"), [("llama_gqa", "keep"), ("qwen2", "keep"), ("mistral_window", "renumber")]
)
def test_equals_the_slow_reference(folders, language, positions):
    folder, net = folders(language)
    vlm = victor_jax.load(folder, f"fastv:keep={KEEP},layer={LAYER},positions={positions}", dtype="float32")
    ids, pixels = tiny.prompt(net.config, [5, 6]), tiny.pixels(net.config, 1)
    end, renumber = ids.shape[1] - 1, positions == "renumber"
    tokens = vlm.generate_ids(ids, pixels, max_new_tokens=STEPS)[0].tolist()
    said = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
    logits, kept = reference(net, np.append(ids, said), pixels, end, renumber)  # chosen once, by the prompt
    assert len(kept) == KEEP
    assert kept != list(range(5, 5 + KEEP))  # not simply the first ones
    asked = logits[: -len(said)]
    np.testing.assert_allclose(vlm.logits(ids, pixels)[0, -6:], asked[-6:], atol=TOLERANCE, rtol=0)
    assert said == logits[len(asked) - 1 : -1].argmax(dim=1).tolist()


def test_a_batch_of_unlike_rows_equals_its_rows_alone(folders):
    """Two images, one image, none; the number that stays is a row's, not an image's."""
    folder, net = folders("llama_gqa")
    vlm = victor_jax.load(folder, f"fastv:keep={KEEP},layer={LAYER}", dtype="float32")
    prompts = [tiny.prompt(net.config, parts, seed)[0] for seed, parts in enumerate([[3, 4, 5], [9, 2], [7]])]
    longest = max(map(len, prompts))
    ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in prompts])  # padding at the left
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in prompts]).astype(int)
    pixels = tiny.pixels(net.config, 3)
    together = vlm.logits(ids, pixels, mask)
    for row, (prompt, share) in enumerate(zip(prompts, (pixels[:2], pixels[2:], None), strict=True)):
        alone = vlm.logits(prompt[None], share)[0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_a_score_chooses_by_the_prompt_as_an_answer_does(tmp_path):
    """With the answer behind the prompt, the same visual tokens stay as without it."""
    vlm = victor_jax.load(talking.saved(tmp_path / "model"), "fastv:keep=1,layer=1", dtype="float32")
    asked = ["What is this?"], [talking.picture(0)]
    (row,) = vlm.prompter.answer(*asked, ["a grey cat"])
    tokens = row.targets[row.targets != IGNORE]
    logits, caches = vlm.call(programs.prefill, *vlm.prepare(vlm.prompter.ask(*asked)), room=len(tokens))
    decode, total = jax.jit(partial(vlm.module.apply, method=VLMModule.decode)), 0.0
    for step, token in enumerate(tokens):
        total += float(jax.nn.log_softmax(logits[0])[token])
        logits, caches = decode({"params": vlm._tree}, token[None], caches, np.int32(step))
    np.testing.assert_allclose(vlm.score(*asked, ["a grey cat"])[0], total, atol=1e-4)


def test_the_plan_keeps_what_it_says():
    config = SIZES["7b"]
    method = parse("fastv:keep=144", config)
    below, scored, leave, rest = method.plan.steps
    assert (below, scored.count, leave, rest) == (Layers(1), 1, Leave(Kind.VISUAL, keep=144), Layers(30))
    counts = np.array([[0, 64, 576, 0], [0, 64, 0, 0]])
    assert method.plan.stage_lengths(method.plan.sizes(counts)) == (640, 640, 208)
    assert parse("fastv:keep=144,layer=32", config).plan == parse("full", config).plan


def test_a_layer_without_attention_before_it_is_refused():
    with pytest.raises(UserError, match=r"layer=0 is outside .* choose 1 to 32"):
        parse("fastv:keep=144,layer=0", SIZES["7b"])
