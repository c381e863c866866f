"""The exact prompts, letter by letter; what is supervised is between «…»."""

import pytest

from victor_jax.data.records import Turn
from victor_jax.data.templates import TEMPLATES

TALK = (
    Turn("human", "<image>\nWhat?"),
    Turn("assistant", "Red."),
    Turn("human", " Sure? "),
    Turn("assistant", " Yes. "),
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def shown(name, turns):
    text, open_ = "", False
    for span in TEMPLATES[name].render(turns):
        if span.supervised != open_:
            text, open_ = text + ("«" if span.supervised else "»"), span.supervised
        text += span.text
    return text + ("»" if open_ else "")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("vicuna_v1", f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:« Red.</s>»USER:  Sure?  ASSISTANT:«  Yes. </s>»"),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«Red.<|eot_id|>»"
            "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«Yes.<|eot_id|>»",
        ),
        ("mistral", "[INST] <image>\nWhat? [/INST]« Red.</s>»[INST]  Sure?  [/INST]«  Yes. </s>»"),
        (
            "qwen2",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n«Red.<|im_end|>»\n"
            "<|im_start|>user\n Sure? <|im_end|>\n<|im_start|>assistant\n« Yes. <|im_end|>»\n",
        ),
    ],
)
def test_the_prompt_of_two_rounds(name, prompt):
    assert shown(name, TALK) == prompt


def test_a_caption_ends_with_a_line_break_and_no_end_token():
    assert shown("plain", (Turn("human", "<image>"), Turn("assistant", "a cat"))) == "<image>«a cat\n»"


def test_a_question_without_an_answer_ends_the_prompt_of_vicuna_as_llava_writes_it():
    assert shown("vicuna_v1", TALK[:3]).endswith("« Red.</s>»USER:  Sure?  ")


def test_the_words_of_the_row_are_told_from_those_of_the_template():
    for name, template in TEMPLATES.items():
        turns = TALK[:2]
        words = [span.text for span in template.render(turns) if not span.markup]
        assert words == ["<image>\nWhat?", "Red."], name
