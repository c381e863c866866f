import pytest

from examples.small_benchmarks import write_all
from victor_jax.data.images import decode
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.tasks import open_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    write_all(out := tmp_path_factory.mktemp("small_benchmarks"))
    found, _ = open_tasks("all", out)
    return {task.benchmark.name: task for task in found}


def test_all_benchmarks_are_there_but_the_quickstarts(tasks):
    assert tasks.keys() == BENCHMARKS.keys() - {"digits"}


def test_every_question_has_its_pictures(tasks):
    asked = {(name, image) for name, task in tasks.items() for one in task.questions for image in one.images}
    assert len(asked) > 60
    assert all(decode(tasks[name].picture(image), image).size == (96, 72) for name, image in asked)


def test_every_question_is_one_of_the_annotations(tasks):
    for name, task in tasks.items():
        if task.annotations:
            answers = [Answer(question.id, "red", question.text) for question in task.questions]
            score = task.benchmark.score(answers, task.annotations, task.folder / task.benchmark.questions)
            assert not score.missing, name
            assert 0 <= score.score < task.benchmark.full_marks, name
