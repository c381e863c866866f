"""How a conversation becomes a prompt. A template yields spans of text and says of each whether it is supervised.

The mask of the loss is read off the spans, so no length is ever counted twice (LLaVA's own way, which loses whole
samples where the two counts differ). A space that the tokenizer joins to the answer's first word belongs to the
answer's span: `ASSISTANT:` is what the model sees before it begins to write.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from victor_jax.data.records import Turn


class Span(NamedTuple):  # a row has dozens of them
    text: str
    supervised: bool = False  # the loss is on its tokens
    markup: bool = False  # written by the template; false: the row's own words, in which <image> is an image
    fresh: bool = False  # tokenised as if the text began here, apart from what stands before


Render = Callable[[Sequence[Turn]], Iterator[Span]]


@dataclass(frozen=True)
class Template:
    name: str
    render: Render
    captions: bool = False  # the words of the question are thrown away, its images stay: one question, one answer


def _plain(turns: Sequence[Turn]) -> Iterator[Span]:
    """haotian-liu/LLaVA, conversation.py, conv_llava_plain: `<image>caption\\n`, without an end token.

    The words of the question were thrown away before; what is left of it are its images.
    """
    question, answer = turns
    yield Span(question.text)
    yield Span(answer.text, supervised=True)
    yield Span("\n", supervised=True, markup=True)


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def _vicuna_v1(turns: Sequence[Turn]) -> Iterator[Span]:
    """haotian-liu/LLaVA, conversation.py, conv_vicuna_v1: no space between `</s>` and the next `USER`."""
    yield Span(VICUNA_SYSTEM, markup=True)
    for turn in turns:
        if turn.speaker == "human":
            yield Span("USER: ", markup=True)
            yield Span(turn.text)
            yield Span(" ", markup=True)
        else:
            yield Span("ASSISTANT:", markup=True)
            yield Span(" ", supervised=True, markup=True)
            yield Span(turn.text, supervised=True)
            yield Span("</s>", supervised=True, markup=True)


def _llama3(turns: Sequence[Turn]) -> Iterator[Span]:
    """The chat template in tokenizer_config.json of meta-llama/Meta-Llama-3-8B-Instruct; it strips every message."""
    for turn in turns:
        answer = turn.speaker == "assistant"
        role = "assistant" if answer else "user"
        yield Span(f"<|start_header_id|>{role}<|end_header_id|>\n\n", markup=True)
        yield Span(turn.text.strip(), supervised=answer)
        yield Span("<|eot_id|>", supervised=answer, markup=True)


def _mistral(turns: Sequence[Turn]) -> Iterator[Span]:
    """Mistral-7B-Instruct v0.1 and v0.2: `<s> [INST] question [/INST] answer</s> [INST] …`.

    mistralai/cookbook, concept-deep-dive/tokenization/chat_templates.md, "Tokenizer V1": every question is encoded
    on its own, and the spaces after <s> and </s> are those that SentencePiece puts before any text.
    """
    for turn in turns:
        if turn.speaker == "human":
            yield Span("[INST] ", markup=True, fresh=True)
            yield Span(turn.text)
            yield Span(" [/INST]", markup=True)
        else:
            yield Span(" ", supervised=True, markup=True)
            yield Span(turn.text, supervised=True)
            yield Span("</s>", supervised=True, markup=True)


def _qwen2(turns: Sequence[Turn]) -> Iterator[Span]:
    """The chat template in tokenizer_config.json of Qwen/Qwen2-7B-Instruct, with the system prompt that it fills in."""
    yield Span("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", markup=True)
    for turn in turns:
        answer = turn.speaker == "assistant"
        yield Span(f"<|im_start|>{'assistant' if answer else 'user'}\n", markup=True)
        yield Span(turn.text, supervised=answer)
        yield Span("<|im_end|>", supervised=answer, markup=True)
        yield Span("\n", markup=True)


TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", _plain, captions=True),
        Template("vicuna_v1", _vicuna_v1),
        Template("llama3", _llama3),
        Template("mistral", _mistral),
        Template("qwen2", _qwen2),
    )
}
