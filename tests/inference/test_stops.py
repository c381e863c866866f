"""The table of a stop string ends an answer with the token that completes it: against decoding after every token."""

import numpy as np
import pytest
from tokenizers_tiny import llama3_tokenizer, qwen2_tokenizer, sentencepiece_tokenizer

from victor_jax.errors import UserError
from victor_jax.inference.stops import stop_table

VOCABULARY = 448  # more than the tokenizers know
TOKENIZERS = {
    "sentencepiece": sentencepiece_tokenizer(True),
    "llama3": llama3_tokenizer(),
    "qwen2": qwen2_tokenizer(),
}
STOPS = [
    ("###",),
    ("\n", "USER:"),
    ("aa", "aab", "ba"),
    (" cat",),
    ("cats and",),
    ("é", "猫"),
    ("a猫b", "猫猫"),
    ("\U0001f600",),
    (" ",),
]


def first_stop(tokenizer, tokens, stop):
    """How many tokens it takes until a stop string is in the text, None where it never is."""
    for length in range(1, len(tokens) + 1):
        said = tokenizer.decode(tokens[:length], skip_special_tokens=True)
        if any(one in said for one in stop):
            return length
    return None


def by_table(table, tokens):
    state = 0
    for length, token in enumerate(tokens, 1):
        if (state := table[state, token]) == 1:
            return length
    return None


@pytest.mark.parametrize("stop", STOPS, ids=ascii)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(name, stop):
    """Random tokens hardly ever say one: so they are mixed with spellings of it, whole, cut short, byte by byte."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    table = stop_table(tokenizer, stop, VOCABULARY)
    letters = [tokenizer.encode(letter, add_special_tokens=False) for letter in "# \nabcé猫\U0001f600"]
    whole = [tokenizer.encode(one, add_special_tokens=False) for one in (*stop, *(f"{one}b" for one in stop))]
    pieces = [*letters, *whole, *(one[:-1] for one in whole), *(one[1:] for one in whole)]
    found = 0
    for _ in range(300):
        tokens = []
        while len(tokens) < 10:
            drawn = rng.random()
            tokens += [int(rng.integers(len(tokenizer)))] if drawn < 0.25 else pieces[rng.integers(len(pieces))]
        expected = first_stop(tokenizer, tokens, stop)
        assert by_table(table, tokens) == expected, tokenizer.decode(tokens)
        found += expected is not None
    assert found > 30


def test_tokens_that_the_tokenizer_does_not_know_say_nothing():
    tokenizer = TOKENIZERS["qwen2"]
    table = stop_table(tokenizer, ("ab",), VOCABULARY)
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    assert by_table(table, [a, VOCABULARY - 1, b]) == 3
    assert len(table) == 16


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(UserError, match="stop strings need a byte-level or a SentencePiece tokenizer"):
        stop_table(object(), ("a",), 10)
