"""What digits.yaml and digits_choice.yaml call."""

from typing import Any

from victor_jax.evaluation.digits import is_right


def visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]]


def choices(doc: dict[str, Any]) -> list[str]:
    return doc["choices"]


def target(doc: dict[str, Any]) -> int:
    return doc["choices"].index(doc["answer"])


def judged(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"exact": float(is_right(results[0], doc["answer"]))}
