"""Requests are grouped, sorted and cut into portions, and answered in the order asked. The model is a stand-in."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from victor_jax.harness import answering
from victor_jax.harness.answering import Request
from victor_jax.harness.asking import Decoding
from victor_jax.inference.sampling import Sampling


class Model:
    """Says the prompt back with how it was asked; an answer of n letters has n + 1 tokens and log-probability -n²."""

    config = SimpleNamespace(language=SimpleNamespace(max_positions=100))

    def __init__(self):
        self.calls = []

    def generate(self, prompts, images, limit, batch_size, *, sampling, seeds, stop):
        self.calls.append((prompts, images, batch_size))
        return [
            f"{prompt} {limit} {sampling.temperature} {seed} {stop}"
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    @property
    def prompter(self):
        def answer(prompts, images, answers):
            return [SimpleNamespace(targets=np.array([-100, *range(len(text) + 1)])) for text in answers]

        return SimpleNamespace(answer=answer)

    def score(self, prompts, images, answers, batch_size):
        self.calls.append((prompts, images, batch_size))
        return np.array([-(len(text) ** 2.0) for text in answers], np.float32)


def requests(count, of_document=1):
    def one(number):
        prompt = "x" * (1 + number * 7 % 5) + str(number)
        return Request(number // of_document, len(prompt), lambda: (prompt, [Image.new("L", (1, 1))]))

    return [one(number) for number in range(count)]


def test_answers_come_in_the_order_asked_whatever_their_decoding_and_length():
    kinds = [Decoding(8), Decoding(500, Sampling(0.5), ("Q:",)), Decoding(8)]
    asked, how = requests(40), [kinds[number % 3] for number in range(40)]
    model = Model()
    said = answering.generate(model, asked, how, batch_size=2)
    for number, text in enumerate(said):
        limit, temperature, stop = (100, 0.5, ("Q:",)) if number % 3 == 1 else (8, 0.0, ())
        assert text == f"<image>\n{asked[number].read()[0]} {limit} {temperature} {number} {stop}"
    assert [len(prompts) for prompts, _, _ in model.calls] == [14, 13, 13]  # by decoding; at most eight batches
    for prompts, _, _ in model.calls:
        assert [*map(len, prompts)] == sorted(map(len, prompts))


def test_the_loss_of_an_answer_is_the_mean_over_its_tokens():
    model = Model()
    answers = ["y" * (1 + number % 4) for number in range(20)]
    losses = answering.losses(model, requests(20, of_document=4), answers, batch_size=2)
    assert losses == pytest.approx([len(text) ** 2 / (len(text) + 1) for text in answers])
    assert [len(prompts) for prompts, _, _ in model.calls] == [10, 10]  # not 16 and 4


def test_requests_of_one_document_show_one_picture():
    model = Model()
    answering.losses(model, requests(8, of_document=4), ["y"] * 8, batch_size=8)
    ((_, images, _),) = model.calls
    assert len({id(one) for (one,) in images}) == 2
