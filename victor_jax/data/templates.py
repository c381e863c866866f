"""How a conversation becomes a prompt. A template yields spans of text and says of each whether it is supervised.

The mask of the loss is read off the spans, so no length is ever counted twice (LLaVA's own way, which loses whole
samples where the two counts differ). A space that the tokenizer joins to the answer's first word belongs to the
answer's span: `ASSISTANT:` is what the model sees before it begins to write.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # records read pictures; settings, which know the templates, must not
    from victor_jax.data.records import Turn


class Span(NamedTuple):  # a row has dozens of them
    text: str
    supervised: bool = False  # the loss is on its tokens
    markup: bool = False  # written by the template; false: the row's own words, in which <image> is an image
    fresh: bool = False  # tokenised as if the text began here, apart from what stands before


@dataclass(frozen=True)
class Template:
    name: str
    system: str = ""
    question: tuple[str, str] = ("", "")  # before and after its text
    answer: tuple[str, str] = ("", "")  # before its text: what the model sees, and what it writes
    end: tuple[str, str] = ("", "")  # after an answer: what the model writes, and what follows
    strip: bool = False  # the text of each turn
    fresh: bool = False  # every question is tokenised on its own
    captions: bool = False  # the words of the question are thrown away, its images stay: one question, one answer

    def render(self, turns: "Sequence[Turn]") -> Iterator[Span]:
        yield Span(self.system, markup=True)
        for turn in turns:
            text = turn.text.strip() if self.strip else turn.text
            if turn.speaker == "human":
                yield Span(self.question[0], markup=True, fresh=self.fresh)
                yield Span(text)
                yield Span(self.question[1], markup=True)
            else:
                yield Span(self.answer[0], markup=True)
                yield Span(self.answer[1], supervised=True, markup=True)
                yield Span(text, supervised=True)
                yield Span(self.end[0], supervised=True, markup=True)
                yield Span(self.end[1], markup=True)


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
# haotian-liu/LLaVA, conversation.py, conv_llava_plain: `<image>caption\n`, without an end token.
PLAIN = Template("plain", end=("\n", ""), captions=True)
# haotian-liu/LLaVA, conversation.py, conv_vicuna_v1: no space between `</s>` and the next `USER`.
VICUNA = Template("vicuna_v1", VICUNA_SYSTEM, ("USER: ", " "), ("ASSISTANT:", " "), ("</s>", ""))
# The chat template in tokenizer_config.json of meta-llama/Meta-Llama-3-8B-Instruct; it strips every message.
LLAMA3 = Template(
    "llama3",
    question=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    answer=("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    end=("<|eot_id|>", ""),
    strip=True,
)
# Mistral-7B-Instruct v0.1 and v0.2: `<s> [INST] question [/INST] answer</s> [INST] …`. From mistralai/cookbook,
# concept-deep-dive/tokenization/chat_templates.md, "Tokenizer V1": every question is encoded on its own, and the spaces
# after <s> and </s> are those that SentencePiece puts before any text.
MISTRAL = Template("mistral", question=("[INST] ", " [/INST]"), answer=("", " "), end=("</s>", ""), fresh=True)
# The chat template in tokenizer_config.json of Qwen/Qwen2-7B-Instruct, with the system prompt that it fills in.
QWEN2 = Template(
    "qwen2",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    question=("<|im_start|>user\n", "<|im_end|>\n"),
    answer=("<|im_start|>assistant\n", ""),
    end=("<|im_end|>", "\n"),
)
TEMPLATES = {template.name: template for template in (PLAIN, VICUNA, LLAMA3, MISTRAL, QWEN2)}
