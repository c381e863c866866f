"""Batches of a harness's requests: those of one decoding together, of like length beside each other, results in the
order asked. Pictures are opened batch by batch."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from victor_jax.harness.asking import Decoding
from victor_jax.inference.prompts import Pictures
from victor_jax.inference.vlm import VLM
from victor_jax.ops.losses import IGNORE

Prompt = tuple[str, Pictures]


@dataclass(frozen=True)
class Request:
    length: int  # of its text, roughly
    read: Callable[[], Prompt]  # opens the pictures


def generate(vlm: VLM, requests: Sequence[Request], how: Sequence[Decoding], batch_size: int) -> list[str]:
    """What the model says to each, as `how` says for each."""
    groups: dict[Decoding, list[int]] = defaultdict(list)
    for number, decoding in enumerate(how):
        groups[decoding].append(number)
    said: dict[int, str] = {}
    with tqdm(total=len(requests), desc="answering", unit="request") as bar:
        for decoding, numbers in groups.items():
            batches = list(_batches(requests, numbers, batch_size))
            asked = (_columns([requests[number].read() for number in batch]) for batch in batches)
            # Tasks ask for up to 32,768 tokens, and caches have room for all of them.
            limit = min(decoding.max_new_tokens, vlm.config.language.max_positions)
            for batch, texts in zip(batches, vlm.generate_batches(asked, limit), strict=True):
                new = {number: _until(text, decoding.stop) for number, text in zip(batch, texts, strict=True)}
                bar.update(len(new))
                said |= new
    return [said[number] for number in range(len(requests))]


def losses(vlm: VLM, requests: Sequence[Request], answers: Sequence[str], batch_size: int) -> list[float]:
    """The mean negative log-probability of each answer's tokens, its end token among them."""
    found: dict[int, float] = {}
    with tqdm(total=len(requests), desc="scoring", unit="request") as bar:
        for batch in _batches(requests, range(len(requests)), batch_size):
            prompts, pictures = _columns([requests[number].read() for number in batch])
            of_batch = [answers[number] for number in batch]
            rows = vlm.prompter.answer(prompts, pictures, of_batch)
            tokens = [int((row.targets != IGNORE).sum()) for row in rows]
            sums = vlm.score(prompts, pictures, of_batch, batch_size=len(batch))
            new = {number: -float(one) / count for number, one, count in zip(batch, sums, tokens, strict=True)}
            bar.update(len(new))
            found |= new
    return [found[number] for number in range(len(requests))]


def _batches(requests: Sequence[Request], numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """The last of several is filled up with its last request, so that no other program is compiled for it."""
    numbers = sorted(numbers, key=lambda number: requests[number].length)
    for start in range(0, len(numbers), size):
        batch = numbers[start : start + size]
        yield batch + batch[-1:] * (size - len(batch) if start else 0)


def _columns(asked: Sequence[Prompt]) -> tuple[list[str], list[Pictures]]:
    return [prompt for prompt, _ in asked], [pictures for _, pictures in asked]


def _until(text: str, stop: Sequence[str]) -> str:
    ends = [text.index(end) for end in stop if end in text]
    return text[: min(ends)].strip() if ends else text
