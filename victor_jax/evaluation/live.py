"""Scores of a model while it is trained: nothing is written, and all processes answer together."""

from collections.abc import Sequence
from functools import partial

from victor_jax.errors import UserError
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.benchmark import score
from victor_jax.evaluation.runner import asked_of, open_picture
from victor_jax.evaluation.tasks import Task, open_tasks
from victor_jax.inference.buckets import in_order
from victor_jax.inference.vlm import VLM


def open_live(names: Sequence[str], data: str, questions: int, batch_size: int) -> list[Task]:
    """`questions`: so many of each benchmark, the first; 0: all."""
    if not names:
        return []
    tasks, _ = open_tasks(",".join(names), data, batch_size=batch_size, limit=questions or None)
    for task in tasks:
        if task.annotations is None:
            raise UserError(f"config.evaluation.benchmarks has {task.benchmark.name}, which has no score here")
    return tasks


def live_score(vlm: VLM, task: Task) -> float:
    """To be called on all processes, whose mesh holds the model."""
    rows = vlm.prompter.ask(*asked_of(task))
    batches = vlm.in_buckets(rows, task.batch_size)
    found = vlm.generate_batches(rows, batches, task.max_new_tokens, open=partial(open_picture, task))
    texts = in_order(len(rows), batches, (of_batch.texts for of_batch in found))
    answers = [Answer(one.id, text, one.text) for one, text in zip(task.questions, texts, strict=True)]
    assert task.annotations is not None
    questions = task.folder / task.benchmark.questions
    return score(task.benchmark, answers, task.annotations, questions, partial=task.limit is not None).score
