"""Text and pictures in, text out: the model is asked exactly as it was taught."""

import json
from dataclasses import replace

import jax
import llava_folder
import numpy as np
import pytest
import talking
from talking import picture
from tokenizers_tiny import llama3_tokenizer, qwen2_tokenizer, sentencepiece_tokenizer, write_sentencepiece

import victor_jax
from victor_jax.compression.plan import Kind
from victor_jax.data.batches import BatchSource
from victor_jax.data.images import preprocess
from victor_jax.data.index import build_index
from victor_jax.data.labels import Reader, encode, encode_prompt
from victor_jax.data.records import Record, Turn
from victor_jax.data.schedule import Schedule
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError
from victor_jax.inference import programs
from victor_jax.inference.buckets import room_for
from victor_jax.inference.prompts import open_prompter
from victor_jax.models.sequence import IMAGE
from victor_jax.ops.images import normalise
from victor_jax.ops.losses import IGNORE
from victor_jax.prompt import Prompt
from victor_jax.training.step import row_losses

VICTOR = "victor:registers=3,layer=2"
TALKS = {
    "vicuna_v1, legacy": ("vicuna_v1", sentencepiece_tokenizer(True)),
    "vicuna_v1": ("vicuna_v1", sentencepiece_tokenizer(False)),
    "mistral, legacy": ("mistral", sentencepiece_tokenizer(True)),
    "mistral": ("mistral", sentencepiece_tokenizer(False)),
    "llama3": ("llama3", llama3_tokenizer()),
    "qwen2": ("qwen2", qwen2_tokenizer()),
}
PROMPTS = ["What is in the picture?", "Is <image> like <image>?", "How many cats?", "Red, green and blue."]
ANSWERS = ["The bus.", "No", "There are two cats", "Red"]


def pictures():
    return [picture(0), [picture(1), picture(2, 9, 30)], None, picture(3)]


@pytest.fixture(scope="module", params=["full", VICTOR])
def vlm(request, tmp_path_factory):
    return victor_jax.load(talking.saved(tmp_path_factory.mktemp("talk") / "m", request.param), dtype="float32")


def record(*texts, images=0):
    turns = tuple(Turn(("human", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return Record(0, tuple("ab"[:images]), turns)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("answer", ["Red.", "7", "the bus", "(a) 12", "猫", "<0x0A>", "ASSISTANT: no"])
@pytest.mark.parametrize(
    "asked",
    [
        record("What is in the picture?"),
        record("<image>\nWhat is in the picture?", images=1),
        record("Is <image> like <image>", images=2),
        record("<image>\nIs it?", "Yes, it is.", "How many cats are there? ", images=1),
    ],
    ids=["text", "one image", "two images", "second turn"],
)
def test_an_open_prompt_is_what_training_sees_before_the_answer(talk, answer, asked):
    name, tokenizer = TALKS[talk]
    template = TEMPLATES[name]
    taught = encode(replace(asked, turns=(*asked.turns, Turn("assistant", answer))), template, tokenizer, 9)
    prompt = encode_prompt(asked, template, tokenizer, 9)
    length = len(prompt.ids)
    np.testing.assert_array_equal(taught.ids[:length], prompt.ids)
    assert (prompt.image_tokens, prompt.images) == (taught.image_tokens, taught.images)
    supervised = taught.targets != IGNORE
    assert supervised[length]
    assert not supervised[length - 1]
    assert not supervised[:length].any() or len(asked.turns) > 1


def test_generate_is_the_template_the_pixels_and_the_tokens_put_together(vlm):
    """The same by hand: LLaVA's prompt, the placeholder once per visual token, pixels padded to a square."""
    tokenizer = sentencepiece_tokenizer(True)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    before = tokenizer(system + "USER: ").input_ids
    after = tokenizer("\nWhat is in the picture? ASSISTANT:", add_special_tokens=False).input_ids
    ids = np.array([before + [talking.VOCABULARY] * 9 + after])
    pixels = np.asarray(normalise(preprocess(picture(0), 12, "pad")))[None]
    tokens = vlm.generate_ids(ids, pixels, max_new_tokens=10)[0].tolist()
    said = tokens[: tokens.index(2)] if 2 in tokens else tokens
    expected = tokenizer.decode(said, skip_special_tokens=True).strip()
    assert expected
    assert vlm.generate(["What is in the picture?"], [picture(0)], max_new_tokens=10) == [expected]


def test_a_batch_answers_as_each_prompt_alone(vlm, tmp_path):
    together = vlm.generate(PROMPTS, pictures(), max_new_tokens=10, batch_size=3)
    assert len(set(together)) == 4
    for number in (1, 3):  # several pictures; the last batch, which is filled up
        assert vlm.generate([PROMPTS[number]], [pictures()[number]], max_new_tokens=10) == [together[number]]
    assert vlm.generate([], []) == []


def as_arrays(vlm, rows):
    """What the Hugging Face processor would make of encoded rows: placeholders repeated, pixels normalised."""
    ids = [np.repeat(row.ids, np.where(row.ids == IMAGE, vlm.config.features_per_image, 1)) for row in rows]
    mask = np.arange(max(map(len, ids)))[None] < [[len(of_row)] for of_row in ids]
    padded = np.zeros(mask.shape, np.int32)
    padded[mask] = np.concatenate(ids)
    pixels = [normalise(vlm.prompter.pixels(one)) for row in rows for one in row.images]
    return {
        "input_ids": np.where(padded == IMAGE, vlm.config.image_token, padded),
        "pixel_values": np.stack(pixels),
        "attention_mask": mask.astype(np.int32),
    }


def test_score_is_the_sum_over_the_answer_of_what_logits_say(vlm):
    scores = vlm.score(PROMPTS, pictures(), ANSWERS, batch_size=3)
    assert scores.dtype == np.float32
    asked = vlm.prompter.answer(PROMPTS, pictures(), ANSWERS)
    logits = vlm.logits(**as_arrays(vlm, asked)).astype(np.float64)
    for score, one, of_row in zip(scores, asked, logits, strict=True):
        targets = one.targets[one.ids != IMAGE]  # of each text position; logits are those of the next one
        where = np.flatnonzero(targets != IGNORE)
        log_z = np.log(np.exp(of_row[where - 1]).sum(axis=1))
        expected = (of_row[where - 1, targets[where]] - log_z).sum()
        assert expected < -1
        np.testing.assert_allclose(score, expected, atol=2e-5)


WITH_PICTURES = [0, 1, 3]  # of PROMPTS: rows without any have batches of their own


@pytest.fixture
def training_batch(vlm, tmp_path):
    """Questions, pictures and answers as training reads them from files: a batch, its sizes, where each record went."""
    rows = []
    for number in WITH_PICTURES:
        shown, prompt = pictures()[number], PROMPTS[number]
        shown = shown if isinstance(shown, list) else [shown]
        names = [f"{number}-{place}.png" for place in range(len(shown))]
        for name, one in zip(names, shown, strict=True):
            one.save(tmp_path / name)
        question = prompt if "<image>" in prompt else f"<image>\n{prompt}"
        rows.append({"image": names, "conversations": llava_folder.turns(question, ANSWERS[number])})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    records, asks = open_source(tmp_path / "data.json", tmp_path), vlm.prompter
    registers = vlm.method.registers
    reader = Reader(records, asks.template, asks.tokenizer, asks.tokens_per_image, max_length=400)
    schedule = Schedule(build_index(reader, 0, progress=False), len(rows), 0, registers)
    source = BatchSource(reader, schedule, registers, 12, asks.aspect)
    step = source[0]
    assert not step.bad
    return step.parts[0], vlm.method.plan.sizes(step.shapes[0].counts(registers)), np.argsort(step.rows[0])


def test_generate_and_score_ask_what_training_taught(vlm, training_batch):
    """From files through an index, a schedule and a padded batch, or from memory: the model is told the same."""
    batch, sizes, order = training_batch
    asked, shown, answers = ([of_row[row] for row in WITH_PICTURES] for of_row in (PROMPTS, pictures(), ANSWERS))
    loss, _ = jax.jit(row_losses, static_argnums=(0, 4, 5))(vlm.module, vlm.params, batch, None, sizes, 64)
    np.testing.assert_allclose(vlm.score(asked, shown, answers), -loss[order], rtol=1e-5)
    first, _ = vlm.call(programs.prefill, *vlm.prepare(vlm.prompter.ask(asked, shown)), room=1)
    taught = vlm.call(programs.full_pass, batch, sizes, end=programs.TextLogits(sizes[-1].stream))
    is_text = batch.sequence.kinds == Kind.TEXT
    ends = is_text.cumsum(axis=1)[np.arange(len(order)), batch.sequence.prompt_end] - 1  # among the text of each row
    np.testing.assert_allclose(first, taught[order, ends[order]], atol=1e-5)


def prompter(folder, **described):
    """Without the weights."""
    checkpoint = talking.checkpoint(folder, **described)
    return open_prompter(folder, checkpoint.prompt, checkpoint.config, checkpoint.config.features_per_image)


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_pictures_are_prepared_as_the_checkpoint_was_taught(tmp_path, aspect):
    asked_with = prompter(write_sentencepiece(tmp_path, legacy=True), prompt=Prompt(aspect=aspect))
    picture(0).save(tmp_path / "0.png")
    asked = asked_with.ask(["a", "b <image> c <image>"], [str(tmp_path / "0.png"), [picture(1), picture(2)]])
    expected = [preprocess(picture(seed), 12, aspect) for seed in range(3)]
    pixels = asked_with.batch(asked, 0, room_for(asked)).pixels
    np.testing.assert_array_equal(pixels[0, 0], expected[0])
    np.testing.assert_array_equal(pixels[1], expected[1:])


def test_the_template_of_the_checkpoint_is_used_and_captions_cannot_ask(tmp_path):
    tokenizer = qwen2_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = {
        name: tokenizer.decode(prompter(tmp_path, prompt=Prompt(name)).ask(["Is it?"], None)[0].ids)
        for name in ("qwen2", "plain", "vicuna_v1")
    }
    assert text["qwen2"].endswith("<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n")
    assert text["vicuna_v1"].endswith("USER: Is it? ASSISTANT:")
    assert text["plain"] == text["vicuna_v1"]


def test_an_answer_ends_where_the_template_ends_it(tmp_path):
    """A base model's config does not name the token that its template closes an answer with."""
    qwen2_tokenizer().save_pretrained(tmp_path)
    reader = prompter(tmp_path, prompt=Prompt("qwen2"), config=replace(talking.CONFIG, end_tokens=(9,)))
    close, word = reader.tokenizer.convert_tokens_to_ids(["<|im_end|>", "A"])
    assert reader.end_tokens == (9, close)
    # Padding after the end may be a word of the tokenizer.
    assert reader.text(np.array([word, close, word, word])) == "A"
    assert reader.text(np.array([word, 9, word])) == "A"


def refused(sentence):
    return pytest.raises(UserError, match=sentence)


def test_prompts_and_pictures_that_do_not_fit_are_refused(vlm, tmp_path):
    with refused("prompts must be a list"):
        vlm.generate("What?", [picture(0)])
    with refused("2 prompts want 2 entries in images"):
        vlm.generate(["a", "b"], [picture(0)])
    with refused("2 prompts want 2 entries in images"):
        vlm.generate(["a", "b"], picture(0))
    with refused("prompt 1 has 1 <image> and 0 images"):
        vlm.generate(["a", "<image> b"], [None, None])
    with refused("prompt 0 has 0 <image> and 2 images"):
        vlm.generate(["a"], [[picture(0), picture(1)]])
    with refused("prompt 1: the question in turn 0 is empty"):
        vlm.generate(["a", " "])
    with refused("2 prompts want 2 answers"):
        vlm.score(["a", "b"], None, ["c"])
    with refused("prompt 0: the answer in turn 1 is empty"):
        vlm.score(["a"], None, [""])
    with refused("nowhere.png cannot be used: No such file"):
        vlm.generate(["a"], [tmp_path / "nowhere.png"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with refused("broken.png cannot be used: not an image that can be read"):
        vlm.generate(["a"], [str(tmp_path / "broken.png")])
    with refused("batch_size=0"):
        vlm.generate(["a"], batch_size=0)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with refused("holds no tokenizer"):
        prompter(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    language = replace(talking.CONFIG.language, vocabulary=64)
    of_another = prompter(
        write_sentencepiece(tmp_path, legacy=True), config=replace(talking.CONFIG, language=language, image_token=64)
    )
    with refused("the model knows 64: they do not belong together"):
        of_another.ask(["What is in the picture?"], None)
