import pytest

from examples.small_benchmarks import write_all
from victor_jax.data.images import decode
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import Answer
from victor_jax.evaluation.runner import result_of
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
    for task in tasks.values():
        for question in task.questions:  # one picture may go without a mark
            assert question.text.count("<image>") == len(question.images) or len(question.images) == 1


def test_every_question_is_scored_or_submitted(tasks, tmp_path):
    for name, task in tasks.items():
        (out := tmp_path / name).mkdir()
        found = result_of(task, [Answer(one.id, "red", one.text) for one in task.questions], out)
        assert found["missing"] == 0, name
        assert (found["score"] is None) is not bool(task.annotations), name
        assert found["score"] is None or 0 <= found["score"] < found["full_marks"], name
        assert bool(found["submission"]) is bool(task.benchmark.submit), name
        assert (out / found["submission"]).exists(), name
