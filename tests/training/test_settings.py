"""Whatever is wrong with a command, its config or what it names: one line, exit status 2, before anything compiles."""

import inspect
import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
import transformers
from small_run import config_of, overrides
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import train
from victor_jax.compression.spec import METHODS, parse
from victor_jax.data.inputs import open_reader, with_paths
from victor_jax.errors import UserError, exit_status
from victor_jax.training import command, settings
from victor_jax.weights.names import REGISTERS
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_run.write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture
def compiled():
    """Names of what jax compiles during the test."""
    names = []

    def note(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            names.append(about)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def said(monkeypatch, capsys, compiled):
    """Arguments of train.py -> its one line on stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        assert exit_status(train.command_line) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("reading rows")]
        assert len(lines) == 1, lines
        assert not compiled
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


FINETUNE = f"--config={small_run.ROOT / 'configs' / 'finetune.py'}"
WORKDIR = "--workdir=never_made"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE[:args] is missing: configs/ holds the recipes"),
        (["--config=configs/nothing.py"], "[Errno 2] No such file or directory: 'configs/nothing.py'"),
        ([FINETUNE], "--workdir=DIR is missing"),
        ([f"{FINETUNE}:victor,vtw", WORKDIR], "'victor' and 'vtw' name two methods: name one"),
        ([f"{FINETUNE}:size=8b", WORKDIR], "config.size='8b' must be one of 7b, 13b, small"),
        ([f"{FINETUNE}:recipe=mine", WORKDIR], "config.recipe='mine' must be one of llava, paper"),
        (
            [FINETUNE, WORKDIR, "--config.batch_sise=3"],
            'no such config key or attribute: batch_sise: Did you mean "batch_size" instead of "batch_sise"?',
        ),
        (
            [FINETUNE, WORKDIR, "--config.data.pth=x"],
            'no such config key or attribute: pth: Did you mean "path" instead of "pth"?',
        ),
        ([FINETUNE, WORKDIR, "--config.batch_size=abc"], "flag --config.batch_size=abc: invalid literal for int()"),
        ([FINETUNE, WORKDIR, "--config.optimizer.b1=x"], "flag --config.optimizer.b1=x: could not convert string to"),
        ([FINETUNE, WORKDIR, "--config.wandb=maybe"], "flag --config.wandb=maybe: ('Non-boolean argument to"),
        ([FINETUNE, WORKDIR, "--config.trainable=none"], "config.trainable='none' must be one of projector"),
        ([FINETUNE, WORKDIR, "--start_timeout=soon"], "flag --start_timeout=soon: invalid literal for int()"),
        ([FINETUNE, WORKDIR, "--config.dtype=fp8"], "config.dtype='fp8' must be one of bfloat16, float32"),
        ([FINETUNE, "--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
        ([FINETUNE, WORKDIR, "extra"], "unexpected argument 'extra': flags begin with --"),
    ],
)
def test_a_wrong_command_is_one_line(said, arguments, message):
    assert said(*arguments).startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimiser", {}, "unknown config key config.optimiser: did you mean optimizer?"),
        ("batch_size", "8", "config.batch_size='8' must be a whole number"),
        ("batch_size", True, "config.batch_size=True must be a whole number"),
        ("batch_size", 0, "config.batch_size=0 must be above 0"),
        ("seed", -1, "config.seed=-1 must be at least 0"),
        ("dtype", None, "config.dtype=None must be one of bfloat16, float32"),
        ("data.template", "x", "config.data.template='x' must be one of plain, vicuna_v1, llama3, mistral, qwen2"),
        ("optimizer.eps", -1.0, "config.optimizer.eps=-1.0 must be above 0"),
        ("optimizer.weight_decay", float("nan"), "config.optimizer.weight_decay=nan must be at least 0"),
        ("total_steps", -5, "config.total_steps=-5 must be at least 0"),
        ("optimizer.learning_rate", "fast", "config.optimizer.learning_rate='fast' must be a number"),
        ("optimizer.warmup_ratio", 3.0, "config.optimizer.warmup_ratio=3.0 must be from 0 to below 1"),
        ("lora.dropout", 1.0, "config.lora.dropout=1.0 must be from 0 to below 1"),
        ("mesh.fsdp", 0, "config.mesh.fsdp=0 must be a number of devices, or -1 for the rest"),
        (
            "trainable",
            ("language", "vision"),
            "config.trainable='vision' must be one of projector, compression, language",
        ),
        ("micro_batches", 3, "config.batch_size=8 does not divide into 3 micro_batches"),
        ("bad_step.action", "ignore", "config.bad_step.action='ignore' must be one of stop, skip"),
        (
            "evaluation.rows",
            0,
            "config.evaluation.every=6 needs config.evaluation.rows to hold out, or benchmarks to ask",
        ),
        (
            "evaluation.benchmarks",
            ["gqa"],
            "config.evaluation.benchmarks needs config.evaluation.every and config.evaluation.data, a folder",
        ),
    ],
)
def test_a_wrong_value_is_named(key, value, message):
    nested = json.loads(json.dumps(config_of({}).to_dict()))
    *sections, name = key.split(".")
    place = nested
    for section in sections:
        place = place[section]
    place[name] = value
    with pytest.raises(UserError) as caught:
        settings.read(nested)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("registers=8,leyer=3", "unknown field 'leyer=3' in compression 'victor:registers=8,layer=3,leyer=3'"),
        ("full,registers=8", "unknown field 'registers=8' in compression 'full:registers=8'"),
        ("victro,layer=3", "unknown compression 'victro' in 'victro:layer=3'"),
    ],
)
def test_a_recipe_hands_the_methods_fields_on_to_be_judged_there(said, tmp_path, argument, message):
    line = said(f"{FINETUNE}:{argument},runlocal", f"--workdir={tmp_path / 'run'}", "--processes=1")
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("argument", "compression"),
    [
        ("", "victor:registers=8,layer=3"),
        ("registers=64", "victor:registers=64,layer=3"),
        ("vtw", "vtw:layer=16"),
        ("layer=2,vtw,positions=renumber,size=13b", "vtw:layer=2,positions=renumber"),
        ("full,runlocal", "full"),
        ("fastv,keep=144", "fastv:keep=144"),
        ("pool:tokens=4+victor:registers=8,layer=3,runlocal", "pool:tokens=4+victor:registers=8,layer=3"),
    ],
)
def test_a_recipes_argument_becomes_a_compression(argument, compression):
    assert config_of({}, argument=argument).compression == compression


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_takes_every_method_with_its_fields_as_words_or_written(name):
    fields = ",".join(f"{field}=1-2" for field in list(inspect.signature(METHODS[name]).parameters)[1:])
    written = f"{name}:{fields}" if fields else name
    for argument in (f"{name},{fields}", f"size=13b,{written}"):
        given = command.parse("train.py", lambda values: None, [f"{FINETUNE}:{argument},runlocal"])
        assert (given.config.compression, given.config.batch_size) == (written, 8)


@pytest.mark.parametrize("form", [["--config={}:8"], ["--config", "{}:8"]])
def test_a_recipe_imports_its_neighbours_from_any_folder(tmp_path, monkeypatch, form):
    folder = tmp_path / "recipes_of_mine"
    folder.mkdir()
    (folder / "shared.py").write_text("from ml_collections import ConfigDict\n")
    text = "from recipes_of_mine.shared import ConfigDict\n\ndef get_config(n): return ConfigDict({'rows': int(n)})\n"
    (folder / "mine.py").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = sys.path.copy()
    given = command.parse("train.py", lambda values: None, [part.format(folder / "mine.py") for part in form])
    assert given.config.rows == 8
    assert sys.path == before


def test_an_override_is_read_as_the_type_of_its_key():
    given = command.parse(
        "train.py",
        lambda values: None,
        [
            f"{FINETUNE}:runlocal",
            "--config.trainable=('projector',)",
            "--config.optimizer.b1=0",
            "--config.wandb=true",
            "--config.init_from=a=b",
            "--config.seed=7",
        ],
    )
    read = settings.read(given.config)
    assert (read.trainable, read.optimizer.b1, read.wandb, read.init_from, read.seed) == (
        ("projector",),
        0.0,
        True,
        "a=b",
        7,
    )


def test_every_recipe_is_read():
    for recipe in ("pretrain", "finetune", "finetune_lora"):
        for argument in ("", "registers=4,layer=2,size=13b,recipe=paper", "vtw", "full", "runlocal"):
            assert settings.read(config_of({}, recipe, argument)).recipe in ("llava", "paper")


def test_whole_numbers_pass_for_floats_and_lists_for_tuples():
    read = settings.read(config_of({}).to_dict() | {"trainable": ["compression"]} | {"lora": {**LORA, "alpha": 8}})
    assert read.trainable == ("compression",)
    assert isinstance(read.lora.alpha, float)


LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.0}

WRONG_WORLDS = {
    "no init_from": ({"init_from": ""}, "config.init_from is empty: give a checkpoint folder"),
    "init_from elsewhere": ({"init_from": "/nowhere"}, "/nowhere/config.json does not exist"),
    "another architecture": ({"init_from": "{gpt}"}, "unknown model_type 'gpt2': known are"),
    "no tokenizer": ({"init_from": "{bare}"}, "no tokenizer could be read from"),
    "a tokenizer too large": ({"data.tokenizer": "{large}"}, "tokens, the model 512: they do not belong together"),
    "no data": ({"data.path": ""}, "config.data.path is empty"),
    "data elsewhere": ({"data.path": "/nowhere.json"}, "/nowhere.json does not exist: expected a .json, .jsonl"),
    "not a list": ({"data.path": "{object}"}, "expected a JSON list, found '{'"),
    "not LLaVA's": ({"data.path": "{captions}"}, "none of the 3 rows of * can be used, the first: it has no 'conv"),
    "no images": ({"data.images": "/nowhere"}, "the image folder /nowhere does not exist"),
    "images not named": (
        {"data.images": ""},
        "config.data.images is not the folder of these rows: of the first, image",
    ),
    "no folder for the index": ({"data.index": "{object}"}, "config.data.index: * cannot be made (File exists)"),
    "other images": ({"data.images": "{empty}"}, "there is no such file in"),
    "too few devices": ({"mesh.data": 3}, "a mesh of data=3, fsdp=8, tensor=1 needs 24 devices, there are 8"),
    "no whole mesh": (
        {"mesh.data": 3, "mesh.fsdp": -1, "mesh.tensor": -1},
        "a mesh of data=3, fsdp=2, tensor=1 needs 6 devices, there are 8",
    ),
    "uneven rest": (
        {"mesh.data": 1, "mesh.fsdp": -1, "batch_size": 12},
        "12 rows, which do not divide over data * fsd",
    ),
    "other registers": (
        {"init_from": "{registers}"},
        "was trained with 4 registers (victor:registers=4,layer=1), victor:registers=2,layer=1 asks for 2 registers",
    ),
    "uneven batch": ({"batch_size": 12}, "config.batch_size=12 in 1 micro_batches gives 12 rows, which do not divide"),
    "uneven width": ({"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 8, "init_from": "{odd}"}, "does not divide over"),
    "layer too deep": ({"compression": "victor:registers=2,layer=9"}, "layer=9"),
    "no such compression": ({"compression": "victro:layer=1"}, "unknown compression 'victro'"),
    "no such attention": ({"attention": "cudnn"}, "cudnn"),
    "all held out": ({"evaluation.rows": 40}, "config.evaluation.rows=40 holds out all of the 40 rows"),
    "too many bad rows": ({"data.path": "{captions}", "data.max_bad_rows": 2}, "more than data.max_bad_rows=2 rows"),
    "trains nothing": ({"trainable": ()}, "leaves nothing to train"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, start):
    """Folders and files that are not what they should be."""
    root = tmp_path_factory.mktemp("places")
    for name in ("gpt", "bare", "empty", "large"):
        (root / name).mkdir()
    (root / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    for file in start.iterdir():
        if not file.name.startswith(("tokenizer", "special")):
            (root / "bare" / file.name).symlink_to(file)
    words = {f"w{number}": number for number in range(600)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))
    tokenizer.save_pretrained(root / "large")
    small_run.write_start(root / "narrow", mlp_width=52)
    checkpoint = open_checkpoint(start)
    tensors = checkpoint.tensors | {REGISTERS: from_array(np.zeros((4, 64), np.float32))}
    spec = "victor:registers=4,layer=1"
    trained = replace(checkpoint, tensors=tensors, compression=spec)
    write_checkpoint(trained, root / "registers", "orbax", lambda _: None)
    (root / "odd").symlink_to(root / "narrow" / "start")
    (root / "object.json").write_text('{"rows": []}')
    (root / "captions.json").write_text(json.dumps([{"image": "0.png", "caption": "red"}] * 3))
    names = {name: str(root / name) for name in ("gpt", "bare", "empty", "large", "odd", "registers")}
    return names | {name: str(root / f"{name}.json") for name in ("object", "captions")}


@pytest.mark.parametrize("case", WRONG_WORLDS)
def test_what_a_config_names_is_checked_before_anything_compiles(said, tmp_path, start, data, places, case):
    changes, message = WRONG_WORLDS[case]
    changes = {key: value.format(**places) if isinstance(value, str) else value for key, value in changes.items()}
    arguments = small_run.command(tmp_path / "run", overrides(start, data) | changes)[2:]
    line = said(*arguments, "--processes=1")
    assert all(part in line for part in message.split("*")), line


def test_a_warning_is_one_line_too(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert exit_status(lambda: warnings.warn("the projector is untrained", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: the projector is untrained\n"


def test_a_model_of_ours_brings_its_tokenizer_without_a_word_of_warning(tmp_path, data, places, caplog):
    parsed = settings.read(config_of(overrides(places["registers"], data)))
    checkpoint = open_checkpoint(places["registers"])
    its = with_paths(parsed.data, checkpoint.folder, tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # it hands nothing on
    reader = open_reader(its, checkpoint.config, parse(parsed.compression, checkpoint.config))
    logger.removeHandler(caplog.handler)
    assert len(reader[0].images) == 1
    assert not caplog.messages


def test_the_index_is_kept_in_the_work_folder_or_where_the_config_says(tmp_path, start, data):
    for change, folder in (({}, tmp_path / "run" / "index"), ({"data.index": "kept"}, Path("kept"))):
        parsed = settings.read(config_of(overrides(start, data) | change))
        assert Path(with_paths(parsed.data, start, tmp_path / "run").index) == folder
