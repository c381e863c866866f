"""Digits on a canvas, the task of the quickstart: questions with one-word answers, and the exact word is right."""

from victor_jax.evaluation.benchmark import Benchmark, accuracy, read_questions


def normalised(text: str) -> str:
    """Case, white space and a closing full stop say nothing."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


DIGITS = Benchmark(
    name="digits",
    max_new_tokens=8,
    read=read_questions,
    prompt=lambda question: question.text,
    judge=lambda question, text: normalised(text) == normalised(question.answer),
    summarise=accuracy,
)
