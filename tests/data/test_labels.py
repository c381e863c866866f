"""Token ids and labels are LLaVA's where LLaVA has any, and right where it loses the row."""

import copy
import pickle

import numpy as np
import pytest
from tokenizers_tiny import llama3_tokenizer, qwen2_tokenizer, sentencepiece_tokenizer

from victor_jax.data import labels
from victor_jax.data.records import BadRow, Record, Turn
from victor_jax.data.templates import TEMPLATES
from victor_jax.models.sequence import IMAGE, EncodedRow
from victor_jax.ops.losses import IGNORE

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA, PLAIN = TEMPLATES["vicuna_v1"], TEMPLATES["plain"]


def record(*texts, images=()):
    speakers = ("human", "assistant")
    return Record(5, tuple(images), tuple(Turn(speakers[i % 2], text) for i, text in enumerate(texts)))


def encode(row, template, tokenizer):
    return labels.encode(row, template, tokenizer, tokens_per_image=4)


def tokens(tokenizer, ids):
    return ["IMAGE" if i == IMAGE else tokenizer.convert_ids_to_tokens(int(i)) for i in ids]


def supervised(tokenizer, example):
    """The supervised tokens, a string for each unbroken run."""
    runs, open_ = [], False
    for token, target in zip(tokens(tokenizer, example.ids), example.targets, strict=True):
        if target != IGNORE:
            runs = [*runs[:-1], f"{runs[-1]} {token}"] if open_ else [*runs, token]
        open_ = target != IGNORE
    return runs


def original(tokenizer, legacy, row):
    """What LLaVA's own code computes for vicuna_v1: prompt, pieces, then lengths of rounds counted again."""

    def length(text):
        return len(pieces(text))

    def pieces(text):
        """Each piece on its own with its BOS, all BOS but the first taken off, images in between."""
        parts = (
            [tokenizer(part).input_ids for part in text.split("<image>")] if row.images else [tokenizer(text).input_ids]
        )
        ids = list(parts[0])
        for part in parts[1:]:
            ids += [IMAGE, *part[1:]]
        return ids

    prompt = SYSTEM + " "
    for number, turn in enumerate(row.turns):
        text = turn.text
        if row.images and "<image>" in text:
            text = ("<image>\n" + text.replace("<image>", "").strip()).strip()
        prompt += f"USER: {text} " if number % 2 == 0 else f"ASSISTANT: {text}</s>"
    ids = pieces(prompt)
    targets = list(ids)
    targets[0] = IGNORE
    at = 1
    for number, part in enumerate(prompt.split("</s>")):
        sides = part.split(" ASSISTANT: ")
        if not part or len(sides) != 2:
            break
        newer = number > 0 and not legacy  # no space before USER, but one is counted when it is tokenised alone
        instruction = length(sides[0] + " ASSISTANT: ") - 2 - newer
        targets[at : at + instruction] = [IGNORE] * instruction
        at += length(part) - newer
    targets[at:] = [IGNORE] * (len(ids) - at)
    return ids, targets, at == len(ids)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        record("<image>\nWhat is in the picture?", "The bus is red.", images=["a"]),
        record("What is in the picture?\n<image>", "The bus is red.", images=["a"]),
        record("Describe <image> the photo.", "red and white", images=["a"]),
        record("<image>", "A dog.", images=["a"]),
        record("<image>\nIs it?", "Yes", "How many?", "two cats", "Is the light on?", "No, it is not.", images=["a"]),
        record("How many cats are there?", "There are two cats."),
        record("Hello", "Hi!", "And <image>?", "It is a word here."),
        record("<image>\n猫?", "猫 and é", "é?", "é", images=["a"]),
        record("<image>\nCode", "a = 1\n\n  b = 2\n", "  again ", "3 . ", images=["a"]),
    ],
)
def test_ids_and_labels_equal_llavas_own_code(legacy, row):
    tokenizer = sentencepiece_tokenizer(legacy)
    ids, targets, matched = original(tokenizer, legacy, row)
    example = encode(row, VICUNA, tokenizer)
    assert matched, "a row that the original would lose shows nothing"
    assert example.ids.tolist() == ids
    assert example.targets.tolist() == targets
    assert example.image_tokens == (4,) * len(row.images)
    assert example.ids.dtype == example.targets.dtype == np.int32


def test_a_space_token_stands_on_both_sides_of_the_image_and_none_after_the_end_token():
    row = record("<image>\nIs it?", "Yes.", "Is it?", "Yes.", images=["a"])
    for legacy, follows in ((True, "▁ USER :"), (False, "USER :")):
        tokenizer = sentencepiece_tokenizer(legacy)
        text = " ".join(tokens(tokenizer, encode(row, VICUNA, tokenizer).ids))
        assert text.startswith("<s> ▁A ")
        assert ". ▁ USER : ▁ IMAGE ▁ <0x0A> Is ▁it ? ▁ASSISTANT : ▁Y es . </s> " + follows in text


def test_what_is_supervised_is_each_answer_with_its_end_token():
    tokenizer = sentencepiece_tokenizer(legacy=False)
    row = record("<image>\nWhat?", "Red.", "Is it?", "Yes, it is.", images=["a"])
    assert supervised(tokenizer, encode(row, VICUNA, tokenizer)) == ["▁ R ed . </s>", "▁Y es , ▁it ▁is . </s>"]


def test_the_place_of_the_image_in_its_turn_does_not_matter_and_twice_is_once():
    tokenizer = sentencepiece_tokenizer(legacy=True)
    forms = ("<image>\nWhat is it?", "What is it?\n<image>", "What is <image>it?", "<image><image>\nWhat is it?")
    examples = [encode(record(form, "Red.", images=["a"]), VICUNA, tokenizer) for form in forms]
    for example in examples[1:]:
        np.testing.assert_array_equal(example.ids, examples[0].ids)
        np.testing.assert_array_equal(example.targets, examples[0].targets)
        assert example.images == ("a",)


def test_several_images_stay_where_they_stand():
    tokenizer = qwen2_tokenizer()
    row = record("Is <image> like <image>?", "No.", "And <image>", "Yes.", images=["a", "b", "c"])
    example = encode(row, TEMPLATES["qwen2"], tokenizer)
    text = "".join(tokens(tokenizer, example.ids)).replace("Ġ", " ").replace("Ċ", "\n")
    assert "user\nIs IMAGE like IMAGE?<|im_end|>" in text
    assert "user\nAnd IMAGE<|im_end|>" in text
    assert example.images == ("a", "b", "c")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record("What?", "Red.", images=["a"]), "lists 1 images, and its text has 0 <image>"),
        (record("<image> one", "Red.", images=["a", "b"]), "lists 2 images, and its text has 1"),
        (record("<image>", "Red.", "<image>", "Blue.", images=["a"]), "lists 1 images, and its text has 2"),
        (record("<image>", "Here: <image>", images=["a"]), "lists 1 images, and its text has 2"),
    ],
)
def test_images_that_do_not_match_the_text_make_a_bad_row(row, reason):
    with pytest.raises(BadRow, match=f"row 5: it {reason}"):
        encode(row, VICUNA, sentencepiece_tokenizer(legacy=True))


def test_the_word_image_in_a_row_of_text_never_becomes_the_image_token():
    tokenizer = copy.deepcopy(sentencepiece_tokenizer(legacy=True))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    example = encode(record("What is an <image> tag?", "Write <image> there."), VICUNA, tokenizer)
    assert tokenizer.convert_tokens_to_ids("<image>") not in example.ids
    assert IMAGE not in example.ids
    assert tokenizer.decode([i for i in example.targets if i != IGNORE]) == "Write < image> there.</s>"


@pytest.mark.parametrize("name", ["vicuna_v1", "mistral"])
@pytest.mark.parametrize("answer", ["Say ASSISTANT: now", " ASSISTANT: ", "an </s> in it", "USER: x [INST] y", "😀 猫"])
def test_an_answer_is_supervised_whole_whatever_it_contains(name, answer):
    tokenizer = sentencepiece_tokenizer(legacy=True)
    row = record("<image>\nWhat?", answer, "More?", "Yes.", images=["a"])
    example = encode(row, TEMPLATES[name], tokenizer)
    alone = tokenizer(f"x {answer}</s>", add_special_tokens=False).input_ids[len(tokenizer.tokenize("x")) :]
    targets = [i for i in example.targets if i != IGNORE]
    assert targets[: len(alone)] == alone
    assert tokens(tokenizer, targets[len(alone) :]) == ["▁Y", "es", ".", "</s>"]


def test_a_last_question_without_an_answer_is_read_and_not_supervised():
    tokenizer = sentencepiece_tokenizer(legacy=True)
    example = encode(record("Is it?", "Yes.", "Is the light on?"), VICUNA, tokenizer)
    assert tokenizer.decode(example.ids).rstrip().endswith("Is the light on?")
    assert supervised(tokenizer, example) == ["▁Y es . </s>"]


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_turn_makes_a_bad_row(empty):
    tokenizer = sentencepiece_tokenizer(legacy=True)
    with pytest.raises(BadRow, match="row 5: the answer in turn 3 is empty"):
        encode(record("a", "b", "c", empty), VICUNA, tokenizer)
    with pytest.raises(BadRow, match="row 5: the question in turn 2 is empty"):
        encode(record("a", "b", empty, "d"), VICUNA, tokenizer)


def test_plain_is_start_image_caption_line_break():
    tokenizer = sentencepiece_tokenizer(legacy=False)
    row = record("Render a clear and concise summary.\n<image>", "a cat", images=["a"])
    example = encode(row, PLAIN, tokenizer)
    assert tokens(tokenizer, example.ids) == ["<s>", "IMAGE", "▁a", "▁c", "at", "<0x0A>"]
    assert example.targets.tolist() == [IGNORE, IGNORE, *example.ids[2:]]
    # The space that SentencePiece puts before a word it does not know is the caption's too.
    example = encode(record("<image>", "猫", images=["a"]), PLAIN, tokenizer)
    assert supervised(tokenizer, example) == ["▁ <0xE7> <0x8C> <0xAB> <0x0A>"]


@pytest.mark.parametrize(
    "row",
    [
        record("<image>", "a cat", "more", "a dog", images=["a"]),
        record("Describe.", "a cat"),
        record("Describe <image>", "a cat"),
    ],
)
def test_plain_wants_an_image_and_one_answer(row):
    with pytest.raises(BadRow, match="not a caption"):
        encode(row, PLAIN, sentencepiece_tokenizer(legacy=True))


@pytest.mark.parametrize(
    ("name", "tokenizer", "expected"),
    [
        (
            "llama3",
            llama3_tokenizer(),
            "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> Ċ Ċ IMAGE Ċ What ? <|eot_id|> "
            "<|start_header_id|> a ssi stan t <|end_header_id|> Ċ Ċ *Red *. *<|eot_id|>",
        ),
        (
            "mistral",
            sentencepiece_tokenizer(legacy=True),
            "<s> ▁[ INST ] ▁ IMAGE ▁ <0x0A> W hat ? ▁[ / INST ] *▁ *R *ed *. *</s>",
        ),
        (
            "qwen2",
            qwen2_tokenizer(),
            "<|im_start|> sy st em Ċ Yo u Ġare Ġa Ġhelpful Ġassistant . <|im_end|> Ċ <|im_start|> user Ċ IMAGE Ċ "
            "What ? <|im_end|> Ċ <|im_start|> a ssi stan t Ċ *Red *. *<|im_end|> Ċ",
        ),
    ],
)
def test_a_row_with_an_image_token_by_token(name, tokenizer, expected):
    example = encode(record("What?\n<image>", "Red.", images=["a"]), TEMPLATES[name], tokenizer)
    found = zip(tokens(tokenizer, example.ids), example.targets, strict=True)
    assert " ".join(token if target == IGNORE else f"*{token}" for token, target in found) == expected


CHAT_TEMPLATES = {
    "llama3": "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "qwen2": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}",
}


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("llama3", llama3_tokenizer()),
        ("qwen2", qwen2_tokenizer()),
        # As the published chat template is meant: the spaces are in its text, and the tokenizer adds none.
        ("mistral", sentencepiece_tokenizer(legacy=False)),
    ],
)
def test_text_rows_equal_the_official_chat_template(name, tokenizer):
    texts = ("What is in the picture?", "The bus is red.", "How many cats?\n", "Two, and a dog.")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    chat = tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATES[name], return_dict=False)
    assert encode(record(*texts), TEMPLATES[name], tokenizer).ids.tolist() == chat


def test_mistral_gives_the_same_ids_in_both_modes_of_the_tokenizer():
    row = record("Is it?", "Yes.", "Is the light on?", "No.")
    old, new = (encode(row, TEMPLATES["mistral"], sentencepiece_tokenizer(legacy)) for legacy in (True, False))
    np.testing.assert_array_equal(old.ids, new.ids)


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (4, 1), (5, 2), (6, 3), (8, 3), (9, 4), (10, 5), (11, 5)])
def test_the_limit_counts_images_by_their_tokens(limit, kept):
    ids = np.array([5, IMAGE, 6, IMAGE, 7], np.int32)
    cut = labels.truncate(EncodedRow(ids, np.arange(5), image_tokens=(4, 3), images=("a", "b")), limit)
    assert cut.ids.tolist() == ids[:kept].tolist()
    assert cut.targets.tolist() == list(range(kept))
    assert cut.images == ("a", "b")[: (ids[:kept] == IMAGE).sum()]
    assert cut.image_tokens == (4, 3)[: len(cut.images)]


def test_examples_and_templates_go_to_other_processes():
    row = record("<image>", "a cat", images=["a"])
    example = pickle.loads(pickle.dumps(encode(row, PLAIN, sentencepiece_tokenizer(legacy=True))))
    assert example.images == ("a",)
    assert pickle.loads(pickle.dumps(TEMPLATES)) == TEMPLATES


def test_the_text_is_whole_with_its_spaces_and_what_is_supervised_is_marked():
    tokenizer = sentencepiece_tokenizer(legacy=False)
    ids = tokenizer("A red bus. Is it?", add_special_tokens=False).input_ids
    middle = len(tokenizer("A red", add_special_tokens=False).input_ids)
    supervised = [number >= middle for number in range(len(ids))]
    assert labels.marked_text(ids, supervised, tokenizer) == "A red[[ bus. Is it?]]"
    shown = labels.marked_text(["<image>", *ids, "<2 images>"], [False, *supervised, False], tokenizer, ("«", "»"))
    assert shown == "<image>A red« bus. Is it?»<2 images>"
