"""Command lines of every command, of train.py and of eval.py, called in this process. A refusal is exit status 2 and
one line on stderr, after the usage where argparse refuses."""

import contextlib
import importlib
import io
import json
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from PIL import Image

from fuzz import models
from fuzz.property import Surface
from victor_jax import cli
from victor_jax.errors import UserError, exit_status
from victor_jax.training import outputs

ROOT = Path(cli.__file__).parents[2]
RECIPE = f"--config={ROOT}/configs/finetune.py:registers=2,layer=1,runlocal"
# What stands for places of the room; the others are as careless as people are.
PATHS = ("{model}", "{hf}", "{data}", "{images}", "{picture}", "{out}/made", "{benchmarks}")
STRANGE = (
    "",
    "absent",
    "/",
    ".",
    "{out}",
    "a\0",
    "x" * 300,
    "-1",
    "0",
    "1e9",
    "nan",
    "9" * 5000,
    "full",
    "é\n",
    "=",
    "a=b=2",
)
words = st.one_of(st.sampled_from(PATHS), st.sampled_from(STRANGE), st.integers(-2, 9).map(str))


def flag(name: str, *right: str) -> st.SearchStrategy[list[str]]:
    """Mostly right, sometimes strange, sometimes not there."""
    form = "{}={}".format if name.startswith("--") else "{}{}".format
    values = st.integers(0, 19).flatmap(lambda one: words if one == 0 else st.sampled_from(right))
    return st.one_of(*[values.map(lambda value: [form(name, value)])] * 24, st.just([]))


def line(*command: str, **options: Any) -> st.SearchStrategy[list[str]]:
    """`positional` and `flags` by name, each with values that are right; a stray word now and then."""
    parts = [flag("", *values) for values in options.get("positional", ())]
    parts += [flag(f"--{name}", *values) for name, values in options.get("flags", {}).items()]
    stray = st.one_of(*[st.just([])] * 6, words.map(lambda word: [word]), words.map(lambda word: [f"--{word}"]))
    return st.tuples(*parts, stray).map(lambda found: [*command, *[word for part in found for word in part]])


recipe_flags = {
    "config.batch_size": ("8", "4", "3"),
    "config.compression": ("full", "victor:registers=2,layer=1", "vtw:layer=9"),
    "config.data.path": ("sample", "{data}"),
    "config.data.images": ("", "{images}"),
    "config.data.max_length": ("128", "1"),
    "config.dtype": ("float32", "float64"),
    "config.optimizer.b1": ("0.9", "1.5"),
    "config.init_from": ("random", "{model}"),
}
lines = st.one_of(
    line(
        "convert",
        positional=(("{model}", "{hf}"), ("{out}/made",)),
        flags={"to": ("hf", "llava", "orbax"), "seed": ("0",)},
    ),
    line("check-data", RECIPE, flags={**recipe_flags, "rows": ("0", "1")}),
    line(
        "pack-data",
        positional=(("{data}", "{data}=2"), ("{out}/made",)),
        flags={"images": ("{images}",), "rows-per-shard": ("2",)},
    ),
    line("plan-pod", RECIPE, flags={**recipe_flags, "topology": ("v5e:2x2", "h200", "v9:1x1", "v5e:0x-1", "h200x3")}),
    line(
        "plan-pod",
        "--answering",
        flags={"topology": ("v5e:2x2", "h200"), "rows": ("2",), "compression": ("full", "pool:tokens=1")},
    ),
    line(
        "heatmap",
        flags={
            "model": ("{model}",),
            "image": ("{picture}",),
            "out": ("{out}/a.png", "{out}/a.gif"),
            "dtype": ("float32",),
        },
    ),
    line("train.py", RECIPE, flags={**recipe_flags, "workdir": ("{out}/run",), "processes": ("1",)}),
    line(
        "eval.py",
        flags={
            "model": ("{model}",),
            "benchmark": ("digits", "all", "digits,gqa"),
            "data": ("{benchmarks}",),
            "out": ("{out}/scores",),
            "dtype": ("float32",),
            "batch-size": ("2", "0"),
            "max-new-tokens": ("2", "-1"),
        },
    ),
    st.lists(words, min_size=1, max_size=3),
)


@dataclass(frozen=True)
class Done:
    status: int
    stdout: str
    stderr: str


class Commands(Surface):
    name, short = "commands", 25
    seconds, megabytes = 30.0, 1000  # programs may be compiled
    inputs = lines

    def prepare(self, given, room):
        models.vlm()
        (room / "images").mkdir()
        Image.new("RGB", (20, 14), (9, 99, 199)).save(room / "images" / "a.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
        (room / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 12))
        question = {"question_id": 1, "image": "a.png", "text": "What?", "category": "x", "answer": "Two"}
        (room / "benchmarks" / "digits").mkdir(parents=True)
        (room / "benchmarks" / "digits" / "questions.jsonl").write_text(json.dumps(question) + "\n")
        shutil.copytree(room / "images", room / "benchmarks" / "digits" / "images")
        places = {
            "{model}": models.folder("talking"),
            "{hf}": models.folder("hf"),
            "{data}": room / "data.json",
            "{images}": room / "images",
            "{picture}": room / "images" / "a.png",
            "{benchmarks}": room / "benchmarks",
            "{out}": room / "out",
        }
        filled = []
        for word in given:
            for mark, place in places.items():
                word = word.replace(mark, str(place))
            filled.append(word)
        return filled

    def attempt(self, prepared, room):
        done = called(prepared, room)
        shown = [text for text in done.stderr.replace("\r", "\n").splitlines() if text.strip()]
        assert "Traceback" not in done.stderr, done.stderr[-1000:]
        assert done.status in (0, 1, 2), f"exit status {done.status}"
        if done.status == 2:
            sentence = shown[-1]
            assert sum("error: " in text for text in shown) <= 1 or sentence.startswith("error: "), shown[-3:]
            raise UserError(sentence)
        return done


def called(words: list[str], room: Path) -> Done:
    """The command, with nothing of it left in this process. Runs of train.py end before anything is computed."""
    name = words[0]
    command: Callable[[], int] = lambda: cli.main(words)  # noqa: E731
    if name == "train.py":
        script = importlib.import_module("train")
        command = lambda: exit_status(script.command_line)  # noqa: E731
    elif name == "eval.py":
        command = importlib.import_module("eval").command_line
    stdout, stderr, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.chdir(room))
        stack.enter_context(mock.patch.object(sys, "argv", words))
        stack.enter_context(mock.patch.object(sys, "path", sys.path.copy()))
        stack.enter_context(mock.patch("train.main", lambda config, workdir: outputs.make_workdir(workdir)))
        stack.enter_context(mock.patch("eval.use_compile_cache"))
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        try:
            status = command()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 2
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Done(status, stdout.getvalue(), stderr.getvalue())
