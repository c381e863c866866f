"""Digits on a canvas, the task of the quickstart: questions with one-word answers, and the exact word is right."""

from victor_jax.evaluation.benchmark import Benchmark, Question, accuracy, read_questions


def normalised(text: str) -> str:
    """Case, white space and a closing full stop say nothing."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def _judge(question: Question, text: str) -> bool:
    return normalised(text) == normalised(question.answer)


DIGITS = Benchmark(
    name="digits",
    max_new_tokens=8,
    read=read_questions,
    prompt=lambda question: question.text,
    judge=_judge,
    summarise=accuracy,
)
