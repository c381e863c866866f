"""Answers to a harness's requests, in the order asked, though requests of one decoding and of like length are answered
together. Pictures are opened a few batches at a time."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from victor_jax.harness.asking import Decoding, with_places
from victor_jax.inference.vlm import VLM
from victor_jax.ops.losses import IGNORE

BATCHES = 8  # whose pictures are held at once


@dataclass(frozen=True)
class Request:
    document: Hashable  # requests of one document are about the same pictures
    length: int  # of the text, roughly
    read: Callable[[], tuple[str, list[Any]]]  # the text and its pictures


def generate(vlm: VLM, requests: Sequence[Request], how: Sequence[Decoding], batch_size: int) -> list[str]:
    """What the model says to each, as `how` says for each. Draws depend on a request's number."""
    together = defaultdict[Decoding, list[int]](list)
    for number, decoding in enumerate(how):
        together[decoding].append(number)
    said = [""] * len(requests)
    with tqdm(total=len(requests), desc="answering", unit="request") as bar:
        for decoding, numbers in together.items():
            # Tasks ask for up to 32,768 tokens, and caches have room for all of them.
            limit = min(decoding.max_new_tokens, vlm.config.language.max_positions)
            for some in _portions(requests, numbers, batch_size):
                prompts, pictures = _read(requests, some)
                texts = vlm.generate(
                    prompts, pictures, limit, batch_size, sampling=decoding.sampling, seeds=some, stop=decoding.stop
                )
                for number, text in zip(some, texts, strict=True):
                    said[number] = text
                bar.update(len(some))
    return said


def losses(vlm: VLM, requests: Sequence[Request], answers: Sequence[str], batch_size: int) -> list[float]:
    """The mean negative log-probability of each answer's tokens, its end token among them."""
    found = [0.0] * len(requests)
    with tqdm(total=len(requests), desc="scoring", unit="request") as bar:
        for some in _portions(requests, range(len(requests)), batch_size):
            prompts, pictures = _read(requests, some)
            of_some = [answers[number] for number in some]
            rows = vlm.prompter.answer(prompts, pictures, of_some)
            sums = vlm.score(prompts, pictures, of_some, batch_size)
            for number, row, total in zip(some, rows, sums, strict=True):
                found[number] = -float(total) / int((row.targets != IGNORE).sum())
            bar.update(len(some))
    return found


def _portions(requests: Sequence[Request], numbers: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Of nearly equal size, so that none is less than a batch, which would compile programs of its own."""
    numbers = sorted(numbers, key=lambda number: requests[number].length)
    for some in np.array_split(numbers, -(-len(numbers) // (BATCHES * batch_size))):
        yield some.tolist()


def _read(requests: Sequence[Request], numbers: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
    """Prompts and pictures. Those of one document are one object, which the vision tower looks at once."""
    shown: dict[Hashable, list[Any]] = {}
    prompts = []
    for number in numbers:
        request = requests[number]
        text, pictures = request.read()
        prompts.append(with_places(text, len(pictures)))
        shown.setdefault(request.document, pictures)
    return prompts, [shown[requests[number].document] for number in numbers]
