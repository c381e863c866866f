"""Small tokenizers of the real kinds, trained here in a blink: SentencePiece as Llama 2's, byte-level BPE as Llama 3's.

No test needs a file from outside. Every string round-trips: what the small corpus lacks is spelt in bytes.
"""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "What is in the picture? ASSISTANT: The bus in the image is white and red.",
    "How many cats are there? ASSISTANT: There are two cats, and a dog sits on the mat.",
    # As in Llama 2's vocabulary, USER is one token inside a word and two after a space.
    "superUSER endUSER multiUSER nonUSER",
    "[INST] Describe the photo. [/INST] A gel memory foam mattress topper on a bed.",
    "user assistant system You are a helpful assistant.",
    "Yes, it is. No, it is not. Red, green and blue. Is the light on?",
]
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN2_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Llama 3's and Qwen2's split into words, letters, digits, marks and white space, before byte pairs are merged.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def write_sentencepiece(folder: Path, legacy: bool) -> Path:
    """A folder with tokenizer.model and tokenizer_config.json, as Vicuna's."""
    (folder / "tokenizer.model").write_bytes(_sentencepiece_model())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "legacy": legacy,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@functools.cache
def sentencepiece_tokenizer(legacy: bool) -> Any:
    """BOS 1, EOS 2, bytes 3..258. `legacy` decides whether text after a special token gets a leading space."""
    with tempfile.TemporaryDirectory() as folder:
        return transformers.AutoTokenizer.from_pretrained(write_sentencepiece(Path(folder), legacy))


@functools.cache
def llama3_tokenizer() -> Any:
    """Adds <|begin_of_text|> by itself, as Llama 3's does."""
    backend = _byte_level(LLAMA3_SPECIAL)
    bos = LLAMA3_SPECIAL[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=LLAMA3_SPECIAL[1], clean_up_tokenization_spaces=False
    )


@functools.cache
def qwen2_tokenizer() -> Any:
    """Has no BOS, as Qwen2's."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(QWEN2_SPECIAL),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def _byte_level(special: tuple[str, ...]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend
