import io

import pytest
from image_files import write_llava_next
from llava_folder import image_row, opened, rows_of_every_kind, text_row, turns, write
from tokenizers_tiny import write_sentencepiece

from victor_jax import cli
from victor_jax.cli.check_data import check, print_schedule, shown
from victor_jax.compression.spec import parse
from victor_jax.data.schedule import Schedule
from victor_jax.models.sizes import SIZES

# Of ml_collections, which loads recipes so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def checked(folder, rows, out=None, **changes):
    """What is printed, and the bad rows."""
    reader, _ = opened(folder, rows)
    out = out or io.StringIO()
    _, bad = check(reader, out, progress=False, **changes)
    return out.getvalue(), bad


def broken_rows():
    rows = rows_of_every_kind(24)
    rows[4]["image"] = "nowhere.jpg"
    rows[5]["conversations"][1]["value"] = ""
    rows[6]["image"] = "text.jpg"
    return rows


def test_counts_by_modality_and_lengths(tmp_path):
    printed, bad = checked(tmp_path, [text_row(5), text_row(9), *(image_row("0.png", n) for n in range(1, 12))])
    assert bad == []
    assert "13 rows, 13 of them good" in printed
    table = [line.split() for line in printed.splitlines()]
    assert ["text", "only", "2"] in [line[:3] for line in table]
    assert ["1", "image", "11"] in [line[:3] for line in table]


def test_every_bad_row_is_named_with_its_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    printed, bad = checked(tmp_path, broken_rows())
    assert [row for row, _ in bad] == [4, 5, 6]
    assert "24 rows, 21 of them good" in printed
    assert "3 bad rows, 2 of them for missing or unreadable images" in printed
    for row, reason in bad:
        assert f"row {row} (byte" in printed
        assert reason in printed


def test_images_may_be_left_unread(tmp_path):
    printed, bad = checked(tmp_path, broken_rows(), read_images=False)
    assert [row for row, _ in bad] == [5]
    assert "images were not read" in printed


def test_the_shapes_of_batches_with_their_steps_and_padding(tmp_path):
    out = io.StringIO()
    _, index = opened(tmp_path, [image_row("0.png", 3)] * 16)
    print_schedule(Schedule(index, 8, 0, 2, 2), parse("victor:registers=2,layer=1", SIZES["7b"]), out)
    assert "2 steps per epoch, each of 2 parts of 4 rows; programs to compile: 1;" in out.getvalue()
    assert "of the text positions are padding" in out.getvalue()
    assert " -> " in out.getvalue()


def test_nothing_but_bad_rows_is_reported_and_no_crash(tmp_path):
    printed, bad = checked(tmp_path, [{"conversations": turns("Why?", "")}] * 3)
    assert len(bad) == 3
    assert "3 rows, 0 of them good" in printed


def test_what_is_supervised_is_in_brackets_where_there_is_no_terminal(tmp_path):
    rows = [{"image": "0.png", "conversations": turns("<image>\nA cat?", "Yes, it is.", "Red?", "No.")}]
    printed, _ = checked(tmp_path, rows)
    assert "USER: <image: 0.png>\nA cat? ASSISTANT:[[ Yes, it is.</s>]]USER: Red? ASSISTANT:[[ No.</s>]]" in printed


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_and_in_colour_on_a_terminal_that_wants_it(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32m yes</s>\033[0m" in checked(tmp_path, [text_row(1)], Terminal())[0].replace(" </s>", "</s>")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in checked(tmp_path, [text_row(1)], Terminal())[0]


def test_the_marked_row_is_its_whole_text(tmp_path):
    reader, _ = opened(tmp_path, [{"conversations": turns("Grüße?", "naïve ☂ 雨")}])
    assert shown(reader, 0).endswith("USER: Grüße? ASSISTANT:[[ naïve ☂ 雨</s>]]")


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    write_sentencepiece(tmp_path / "tokenizer", False)

    def run(rows, *more):
        return cli.main(
            [
                "check-data",
                "--config=configs/finetune.py:registers=2,layer=1,runlocal",
                f"--config.data.path={write(tmp_path, rows)}",
                f"--config.data.images={tmp_path}",
                f"--config.data.tokenizer={tmp_path / 'tokenizer'}",
                "--config.data.max_length=400",
                *more,
            ]
        )

    return run


def test_the_command_reads_a_recipe(command, capsys):
    assert command(rows_of_every_kind(24)) == 0
    out = capsys.readouterr().out
    assert "24 rows, 24 of them good" in out
    assert "steps per epoch" in out


def test_the_command_fails_where_the_recipe_allows_fewer_bad_rows(command, capsys):
    assert command(broken_rows(), "--config.data.max_bad_rows=3") == 0
    assert command(broken_rows(), "--config.data.max_bad_rows=2") == 1
    assert "3 bad rows are more than data.max_bad_rows=2" in capsys.readouterr().err


def test_the_command_fails_where_no_row_can_be_used(command, capsys):
    assert command([{"conversations": turns("Why?", "")}] * 3) == 1
    assert "error: no row can be used" in capsys.readouterr().err


def test_the_command_takes_parquet(command, tmp_path, capsys):
    path = write_llava_next(tmp_path / "a.parquet", 24)
    assert command([], f"--config.data.path={path}", "--config.data.images=", "--config.batch_size=8") == 0
    out = capsys.readouterr().out
    assert "24 rows, 24 of them good" in out
    assert "a.parquet, row 7; [[supervised]]:" in out
    assert "USER: <image: 7/0>\nWhat 7? ASSISTANT:[[ So.</s>]]" in out


RANDOM, NOWHERE = ["--config.init_from=random"], ["--config.data.path=/nowhere.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE"),
        (["--config=configs/nowhere.py"], "nowhere.py"),
        (["--config=configs/finetune.py:registers", *RANDOM, *NOWHERE], "unknown compression 'registers'"),
        (["--config=configs/finetune.py", "--config.data.pth=x"], "pth"),
        (["--config=configs/finetune.py", *RANDOM], "config.data.path is empty"),
        (["--config=configs/finetune.py", *RANDOM, *NOWHERE], "/nowhere.json does not exist"),
    ],
)
def test_a_wrong_command_is_one_sentence(arguments, message, capsys):
    assert cli.main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
