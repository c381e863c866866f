"""An evaluation can be stopped anywhere, goes on by itself, and never mixes what does not belong together.

Run as a script, this file forks processes of eval.py that get the signal SIGNAL when they have AFTER answers: importing
takes a process longer than all that it does then, and so only one has to.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import small_run
import talking
from disks import disk

import eval as eval_script
import victor_jax
from victor_jax.errors import UserError
from victor_jax.evaluation import runner
from victor_jax.evaluation.runner import row_of, run
from victor_jax.evaluation.tasks import open_tasks
from victor_jax.files import writing

TEXTS = ["What is in the picture?", "How many cats?", "Which is red?", "Is it?", "Is the light on?"]
QUESTIONS = 11
SIZE = 4  # of a batch: the last of three is not full


def write_questions(folder, answers):
    (folder / "digits").mkdir(parents=True)
    rows = [
        {
            "question_id": 100 + number,
            "image": f"{number}.png" if number != 5 else None,
            "text": TEXTS[number % len(TEXTS)],
            "category": ("place", "count")[number % 2],
            "answer": answer,
        }
        for number, answer in enumerate(answers)
    ]
    (folder / "digits" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A model, images, and questions of which the model answers those of even number right."""
    folder = tmp_path_factory.mktemp("data")
    talking.saved(folder / "model", "victor:registers=3,layer=2")
    write_images(folder / "images", QUESTIONS)
    vlm = victor_jax.load(folder / "model", dtype="float32")
    images = [folder / "images" / f"{number}.png" if number != 5 else None for number in range(QUESTIONS)]
    said = vlm.generate([TEXTS[i % len(TEXTS)] for i in range(QUESTIONS)], images, 8, batch_size=SIZE)
    write_questions(folder, [text if i % 2 == 0 else "wrong" for i, text in enumerate(said)])
    (folder / "images").rename(folder / "digits" / "images")
    return folder, vlm, said


def write_images(folder, number):
    folder.mkdir(parents=True)
    for one in range(number):
        talking.picture(one).save(folder / f"{one}.png")


def task(folder, **changes):
    (found,), _ = open_tasks("digits", folder, **{"batch_size": SIZE, **changes})
    return found


def lines(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder, vlm, _ = data
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, run(vlm, task(folder), out, model="the model")


def stopped(data, out, after):
    """A run that was interrupted when it had the answer to question number `after`."""
    folder, vlm, _ = data
    given = []

    def interrupted(question, text, compression):
        given.append(question)
        if len(given) > after:
            raise KeyboardInterrupt
        return row_of(question, text, compression)

    with pytest.raises(KeyboardInterrupt), mock.patch.object(runner, "row_of", interrupted):
        run(vlm, task(folder), out)


def test_every_answer_is_what_the_model_says_and_the_score_is_their_share(data, finished):
    _, _, said = data
    out, result = finished
    assert [line["text"] for line in lines(out)] == said
    assert [line["question_id"] for line in lines(out)] == list(range(100, 100 + QUESTIONS))
    assert lines(out)[1]["prompt"] == "How many cats?"
    assert result["score"] == pytest.approx(100 * 6 / 11)
    assert (result["unit"], result["parts"]) == ("%", {"place": 100, "count": 0})
    assert (result["questions"], result["missing"]) == (QUESTIONS, 0)
    assert json.loads((out / "result.json").read_text()) == result


def test_the_settings_stand_beside_the_score(finished):
    _, result = finished
    settings = result["settings"]
    assert result["questions"] == QUESTIONS
    expected = {
        "model": "the model",
        "compression": "victor:registers=3,layer=2",
        "registers": 3,
        "template": "vicuna_v1",
        "aspect": "pad",
        "dtype": "float32",
        "decoding": {"method": "greedy", "max_new_tokens": 8},
        "with_images": True,
        "batch_size": SIZE,
        "answered": QUESTIONS,
    }
    assert settings | expected == settings
    assert settings["versions"].keys() >= {"python", "jax", "transformers"}
    assert settings["seconds"] > 0
    assert settings["images_per_second"] > 0
    assert len(settings["questions_sha256"]) == 64
    assert settings["revision"].startswith(victor_jax.__version__)


@pytest.mark.parametrize(("after", "kept"), [(0, 0), (SIZE + 1, SIZE)], ids=["first batch", "second batch"])
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not_stopped(data, finished, tmp_path, after, kept):
    folder, vlm, _ = data
    out, result = finished
    stopped(data, tmp_path, after)
    assert (tmp_path / "answers.jsonl").exists() == bool(kept)
    assert not kept or len(lines(tmp_path)) == kept
    resumed = run(vlm, task(folder), tmp_path, model="the model")
    assert (tmp_path / "answers.jsonl").read_bytes() == (out / "answers.jsonl").read_bytes()
    assert (resumed["score"], resumed["parts"]) == (result["score"], result["parts"])
    assert resumed["settings"]["answered"] == QUESTIONS - kept


@pytest.mark.parametrize("kept", [1, 60, 700], ids=["nothing whole", "still nothing", "some lines"])
def test_a_line_that_was_cut_short_is_answered_again(data, finished, tmp_path, kept):
    folder, vlm, _ = data
    out, _ = finished
    whole = (out / "answers.jsonl").read_bytes()
    (tmp_path / "settings.json").write_bytes((out / "settings.json").read_bytes())
    (tmp_path / "answers.jsonl").write_bytes(whole[:kept])
    run(vlm, task(folder), tmp_path)
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


def test_a_finished_run_is_only_read_and_scored_again(data, finished):
    folder, vlm, _ = data
    out, result = finished
    with mock.patch.object(type(vlm), "generate_batches", side_effect=AssertionError("nothing is left to ask")):
        assert run(vlm, task(folder), out, model="the model") == result


def changed(sentence):
    return pytest.raises(UserError, match=f"holds answers under other settings: .*{sentence}")


def test_answers_under_other_settings_are_not_mixed(data, finished):
    folder, vlm, _ = data
    out, _ = finished
    before = (out / "answers.jsonl").read_bytes()
    with changed("decoding.max_new_tokens was 8 and is 9"):
        run(vlm, task(folder, max_new_tokens=9), out)
    with changed("with_images was True and is False"):
        run(vlm, task(folder, blind=True), out)
    with changed("aspect was 'pad' and is 'square'"):
        run(replace(vlm, prompt=replace(vlm.prompt, aspect="square")), task(folder), out)
    with changed("questions_sha256 was"):
        run(vlm, task(folder, limit=3), out)
    assert (out / "answers.jsonl").read_bytes() == before


def test_a_model_that_was_trained_again_is_another_one(data, finished):
    folder, vlm, _ = data
    out, _ = finished
    file = folder / "model" / "config.json"
    stat = file.stat()
    try:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        with changed("model_files was"):
            run(vlm, task(folder), out)
    finally:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_folder_with_other_answers_is_refused(data, finished, tmp_path):
    folder, vlm, _ = data
    out, _ = finished
    whole = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(b"".join(whole))
    with pytest.raises(UserError, match="answers without the settings"):
        run(vlm, task(folder), tmp_path)
    (tmp_path / "settings.json").write_bytes((out / "settings.json").read_bytes())
    other = [whole[0], whole[1].replace(b"How", b"Who")]
    for wrong in ([whole[0]] * 2, [whole[0], b"{}\n"], [whole[0], b"\xff\n"], other):
        (tmp_path / "answers.jsonl").write_bytes(b"".join(wrong))
        with pytest.raises(UserError, match="line 2, is not the one answer to one of these questions"):
            run(vlm, task(folder), tmp_path)
    (tmp_path / "answers.jsonl").write_bytes(b"".join([*whole, whole[0]]))
    with pytest.raises(UserError, match="line 12, is not the one answer"):
        run(vlm, task(folder), tmp_path)


@pytest.mark.parametrize("name", ["settings.json", "result.json"])
def test_a_damaged_file_of_a_finished_run_is_named(data, finished, tmp_path, name):
    folder, vlm, _ = data
    out = shutil.copytree(finished[0], tmp_path / "out")
    os.truncate(out / name, 100)
    with pytest.raises(UserError, match=rf"out/{name} was not written by this command"):
        run(vlm, task(folder), out)
    assert (out / "answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("kilobytes", [4, 8])
def test_on_a_full_disk_answers_are_kept_and_the_run_goes_on(data, finished, tmp_path, kilobytes):
    folder, vlm, _ = data
    out = tmp_path / "disk" / "out"
    with disk(tmp_path / "disk", kilobytes) as change:
        with pytest.raises(UserError, match="out cannot be written: No space left"), writing(out):
            run(vlm, task(folder), out)
        assert set(os.listdir(out)) <= {"settings.json", "answers.jsonl"}
        change("size=1m")
        run(vlm, task(folder), out)
        assert (out / "answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()
        change("ro")
        with pytest.raises(UserError, match="Read-only file system"), writing(out):
            run(vlm, task(folder), tmp_path / "disk" / "other")


def test_what_is_missing_is_said_before_a_model_is_read(data, tmp_path):
    folder, _, _ = data
    with pytest.raises(UserError, match=r"the folder of benchmarks .*nowhere does not exist"):
        task(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"digits: there is no .*digits/questions.jsonl, .*digits/images"):
        task(tmp_path)
    write_questions(tmp_path, ["x"] * QUESTIONS)
    assert len(task(tmp_path, blind=True).questions) == QUESTIONS
    write_images(tmp_path / "digits" / "images", 2)
    with pytest.raises(UserError, match=r"images lacks 8 of 10 images: 2.png.* the first is of question 102"):
        task(tmp_path)
    assert len(task(tmp_path, limit=2).questions) == 2
    with pytest.raises(UserError, match="batch_size=0 must be"):
        task(folder, batch_size=0)
    with pytest.raises(UserError, match="there is no benchmark 'digit': did you mean digits"):
        open_tasks("digit", folder)


def test_an_image_that_cannot_be_read_stops_with_its_question_after_all_before_it(data, tmp_path):
    _, vlm, said = data
    write_questions(tmp_path, ["x"] * 8)
    write_images(tmp_path / "digits" / "images", 8)
    (tmp_path / "digits" / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"question 101: image 1.png: not an image that can be read"):
        run(vlm, task(tmp_path), tmp_path / "out")
    answered = {line["question_id"]: line["text"] for line in lines(tmp_path / "out")}
    assert answered == {name: said[name - 100] for name in answered}
    assert len(answered) == SIZE
    assert 101 not in answered


def command(folder, out, *flags):
    given = [f"--model={folder / 'model'}", f"--data={folder}", f"--out={out}", "--benchmark=digits", "--blind"]
    options = ["--dtype=float32", "--max-new-tokens=4", "--limit=3", "--compression=vtw:layer=1"]
    eval_script.main(eval_script.parse([*given, *options, *flags]))
    return json.loads((out / "digits" / "result.json").read_text())


def test_the_command_compares_with_two_other_runs_and_prints_its_settings(data, tmp_path, capsys, monkeypatch):
    folder, _, _ = data
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    out = tmp_path / "out"
    result = command(folder, out)
    printed = capsys.readouterr().out
    assert "digits: 3 questions, 3 to answer by" in printed
    assert "vtw:layer=1, without images; vicuna_v1, pad, float32, greedy" in printed
    assert "None of the paper's twelve benchmarks" in printed
    assert (result["settings"]["compression"], result["settings"]["registers"]) == ("vtw:layer=1", 0)
    assert len(lines(out / "digits")) == 3

    def other(name, score, with_images):
        (tmp_path / name / "digits").mkdir(parents=True)
        changed = result | {"score": score, "settings": result["settings"] | {"with_images": with_images}}
        (tmp_path / name / "digits" / "result.json").write_text(json.dumps(changed))
        return f"--{name}={tmp_path / name}"

    full, floor = other("full", 80.0, True), other("floor", 30.0, False)
    monkeypatch.setattr("victor_jax.load", mock.Mock(side_effect=AssertionError("nothing is left to ask")))
    above = (command(folder, out, full, floor)["score"] - 30) / 50
    assert f"| {above:.1%} " in (out / "table.md").read_text()
    with pytest.raises(UserError, match=r"--floor=.*full answered digits with pictures"):
        command(folder, out, full, full.replace("--full", "--floor"))
    with pytest.raises(UserError, match=r"--floor says .* with --full"):
        command(folder, out, floor)
    with pytest.raises(UserError, match=r"--full=.* answered other questions of digits"):
        command(folder, out, "--limit=2", full)
    with pytest.raises(UserError, match="out/digits holds answers under other settings: questions_sha256"):
        command(folder, out, "--limit=2")


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, capsys, monkeypatch):
    flags = ["--model=x", "--benchmark=digits", "--data=no", "--out=o", "--processes=1"]
    monkeypatch.setattr("sys.argv", ["eval.py", *flags])
    assert eval_script.command_line() == 2
    assert capsys.readouterr().err == "error: the folder of benchmarks no does not exist\n"


@pytest.fixture(scope="module")
def to_fork():
    with subprocess.Popen(
        [sys.executable, __file__],
        env=small_run.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def two_processes(to_fork, model, data, out, **environment):
    """eval.py in two processes: the exit status of each, and what they printed."""
    named = {"model": model, "data": data, "out": out, "benchmark": "digits", "dtype": "float32", "batch-size": SIZE}
    named |= {"coordinator": f"localhost:{small_run.free_port()}", "processes": 2}
    both = [
        ["eval.py", *(f"--{name}={value}" for name, value in (named | {"process-id": one}).items())] for one in (0, 1)
    ]
    printed = [[f"{out}-{one}.{stream}" for stream in ("stdout", "stderr")] for one in (0, 1)]
    print(json.dumps([both, printed, environment]), file=to_fork.stdin, flush=True)
    codes = json.loads(to_fork.stdout.readline())
    return codes, [[Path(file).read_text() for file in files] for files in printed]


def test_two_processes_that_are_killed_go_on_as_two_or_as_one(to_fork, data, finished, tmp_path):
    folder, vlm, _ = data
    out, result = finished
    killed = {"AFTER": str(SIZE), "SIGNAL": str(int(signal.SIGKILL))}
    codes, said = two_processes(to_fork, folder / "model", folder, tmp_path / "two", **killed)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, 2), said
    assert len(lines(tmp_path / "two" / "digits")) == SIZE
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    codes, said = two_processes(to_fork, folder / "model", folder, tmp_path / "two")
    assert codes == [0, 0], said
    assert "| digits " in said[0][0]
    assert "| digits " not in said[1][0]
    written = json.loads((tmp_path / "two" / "digits" / "result.json").read_text())
    assert written["score"] == result["score"]
    assert (written["settings"]["answered"], written["settings"]["devices"]) == (QUESTIONS - SIZE, 2)

    run(vlm, task(folder), tmp_path / "one" / "digits")
    for name in ("one", "two"):
        assert (tmp_path / name / "digits" / "answers.jsonl").read_bytes() == (out / "answers.jsonl").read_bytes()


def test_sigterm_to_one_of_two_processes_ends_both_and_keeps_what_was_answered(to_fork, data, tmp_path):
    folder, _, _ = data
    stopped = {"AFTER": str(SIZE), "SIGNAL": str(int(signal.SIGTERM))}
    codes, said = two_processes(to_fork, folder / "model", folder, tmp_path / "out", **stopped)
    assert codes == [130, 130], said
    assert len(lines(tmp_path / "out" / "digits")) == SIZE


def test_a_mistake_that_one_process_meets_ends_both(to_fork, data, tmp_path):
    """The second one reads the batch of questions 0, 1, 2 and 4."""
    folder, _, _ = data
    write_questions(tmp_path, ["x"] * QUESTIONS)
    shutil.copytree(folder / "digits" / "images", tmp_path / "digits" / "images")
    (tmp_path / "digits" / "images" / "1.png").write_bytes(b"no picture")
    codes, said = two_processes(to_fork, folder / "model", tmp_path, tmp_path / "out")
    assert codes == [2, 2]
    for _, errors in said:
        assert "error: process 1 of 2: question 101: image 1.png: not an image that can be read" in errors


def evaluate(arguments, printed, environment):
    """In this process, whose output goes to two files; SIGALRM ends it where it hangs."""
    for stream, file in zip((sys.stdout, sys.stderr), printed, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    os.environ.update(environment)
    sys.argv = arguments
    signal.alarm(small_run.SECONDS)
    given = []

    def signalled(question, text, compression):
        if len(given) == int(os.environ.get("AFTER", QUESTIONS)):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        given.append(question)
        return row_of(question, text, compression)

    with mock.patch.object(runner, "row_of", signalled):
        sys.exit(eval_script.command_line())


if __name__ == "__main__":
    for line in sys.stdin:
        both, printed, environment = json.loads(line)
        children = []
        for arguments, files in zip(both, printed, strict=True):
            children.append(os.fork())
            if children[-1] == 0:
                evaluate(arguments, files, environment)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
