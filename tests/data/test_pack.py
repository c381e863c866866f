"""Several sources become one pack, each row as often as its weight says; an ended pack goes on and ends the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from image_files import image_bytes, turns, write_finevision, write_llava_next, write_tar

from victor_jax import cli
from victor_jax.data.pack import chosen_rows, write_pack
from victor_jax.data.sources import open_source
from victor_jax.errors import UserError

SHARD = 4
ASKED = "<image>\nWhat?"


@pytest.fixture
def folder(tmp_path):
    """A JSON file whose rows share images, one of them missing, and files with images of their own."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.png").write_bytes(image_bytes(100 + number))
    rows = [{"id": f"j{i}", "image": f"{i % 7}.png", "conversations": turns(ASKED, "Red.")} for i in range(11)]
    (tmp_path / "a.json").write_text(json.dumps([*rows, {"id": "bad", "image": 3}]))
    write_llava_next(tmp_path / "b.parquet")
    write_finevision(tmp_path / "c.parquet")
    members = {"k.json": {"id": "k", "conversations": turns(ASKED, "Red.")}, "k.png": image_bytes(7), "l.json": b"{"}
    write_tar(tmp_path / "d.tar", members)
    return tmp_path


def arguments(folder, *sources, **changes):
    sources = sources or (("a.json", 1.0), ("b.parquet", 1.5), ("c.parquet", 1.0), ("d.tar", 2.0))
    named = [(str(folder / name), weight) for name, weight in sources]
    return {"sources": named, "images": str(folder / "images"), "rows_per_shard": SHARD, **changes}


def pack(folder, name, *sources, progress=lambda done, total: None, **changes):
    return write_pack(**arguments(folder, *sources, **changes), destination=folder / name, progress=progress)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(folder):
    return [row.get("id") for row in open_source(folder)]


def test_rows_and_images_of_every_format(folder):
    rows, _, unread = pack(folder, "pack")
    records = open_source(folder / "pack")
    assert ids(folder / "pack")[:12] == [*(f"j{i}" for i in range(11)), "bad"]
    assert ids(folder / "pack")[-4:] == ["k", "k", None, None]
    by_id = {row.get("id"): row for row in records}
    for name, seed in (("j1", 101), ("j8", 101), ("3", 3), ("k", 7)):
        assert [records.read(path) for path in by_id[name]["image"]] == [image_bytes(seed)]
    (two,) = [row for row in records if row.get("image") != 3 and len(row.get("image") or ()) == 2]
    assert [records.read(path) for path in two["image"]] == [image_bytes(0), image_bytes(1)]
    assert (rows, len(records)) == (12 + 11 + 4 + 4, 31)
    assert sum("d.tar, row 1 (l)" in sentence for sentence in unread) == 2
    assert sum("image 6.png" in sentence for sentence in unread) == 1


def test_an_image_is_stored_once_however_often_its_row_is(folder):
    assert pack(folder, "pack", ("b.parquet", 3.0)) == (21, 5, [])


def test_a_pack_is_a_source_too(folder):
    pack(folder, "first")
    rows, images, unread = pack(folder, "second", ("first", 1.0))
    first, second = (open_source(folder / name) for name in ("first", "second"))
    assert (rows, images) == (len(first), 6 + 5 + 3 + 1)
    assert [sentence for sentence in unread if "image" in sentence] == [
        "image 6.png: it could not be read when the pack was made"
    ]
    for index in (0, 13, -8 + rows):
        assert first.read(first[index]["image"][0]) == second.read(second[index]["image"][0])


@pytest.mark.parametrize(("weight", "total"), [(1, 1000), (0.25, 250), (2, 2000), (2.5, 2500), (0.0001, 0)])
def test_a_weight_is_how_often_each_row_is_written(weight, total):
    chosen = chosen_rows(1000, weight, (0, 0))
    assert len(chosen) == total
    assert (np.diff(chosen) >= 0).all()
    times = np.bincount(chosen, minlength=1000)
    assert times.min() >= int(weight)
    assert times.max() <= int(np.ceil(weight))


def test_a_fraction_is_drawn_by_the_seed():
    first = chosen_rows(1000, 0.5, (0, 0))
    np.testing.assert_array_equal(first, chosen_rows(1000, 0.5, (0, 0)))
    for other in ((1, 0), (0, 1)):
        assert 200 < len(np.intersect1d(first, chosen_rows(1000, 0.5, other))) < 300
    assert first[:6].tolist() == DRAWN


DRAWN = [0, 1, 2, 4, 5, 8]  # a pack must come out the same with every version of NumPy


class EndedError(BaseException):
    """Such as Ctrl-C."""


def end_at(done, rows):
    if done == rows:
        raise EndedError


@pytest.mark.parametrize("rows", range(0, 30, 3))
def test_an_ended_pack_goes_on_and_is_the_same_byte_for_byte(folder, rows):
    undisturbed = pack(folder, "whole")
    with pytest.raises(EndedError):
        pack(folder, "pack", progress=lambda done, total: end_at(done, rows + 1))
    assert not (folder / "pack").exists()
    assert len(list((folder / "pack.partial").glob("rows-*.array_record"))) == rows // SHARD
    done = pack(folder, "pack")
    assert content(folder / "pack") == content(folder / "whole")
    assert not (folder / "pack.partial").exists()
    assert done[:2] == undisturbed[:2]
    assert len(done[2]) == len(undisturbed[2])


def test_whole_shards_are_not_read_again_from_their_source(folder, monkeypatch):
    with pytest.raises(EndedError):
        pack(folder, "pack", progress=lambda done, total: end_at(done, 12))
    for name in ("0.png", "1.png", "2.png", "3.png"):  # in the first shard of images
        (folder / "images" / name).unlink()
    pack(folder, "pack")
    records = open_source(folder / "pack")
    assert records.read("2/2.png") == image_bytes(102)


@pytest.mark.parametrize("change", ["weight", "seed", "shards", "data"])
def test_other_arguments_do_not_go_on(folder, change):
    with pytest.raises(EndedError):
        pack(folder, "pack", progress=lambda done, total: end_at(done, 9))
    other = {
        "weight": arguments(folder, ("a.json", 2.0)),
        "seed": arguments(folder, seed=1),
        "shards": arguments(folder, rows_per_shard=5),
        "data": arguments(folder),
    }[change]
    if change == "data":
        os.utime(folder / "a.json", (1, 1))
    before = content(folder / "pack.partial")
    with pytest.raises(UserError, match=r"beginning of a pack with other arguments.* or remove it"):
        write_pack(**other, destination=folder / "pack")
    assert content(folder / "pack.partial") == before


def test_an_error_halfway_leaves_what_is_whole(folder):
    sources = (("a.json", 1.0), ("b.parquet", 1.0))
    pack(folder, "whole", *sources)
    parquet = folder / "b.parquet"

    def take_away(done, total):
        if done == 15:  # its first row group is read
            parquet.rename(folder / "away")

    with pytest.raises(UserError, match=r"b\.parquet is not a parquet file that can be read"):
        pack(folder, "pack", *sources, progress=take_away)
    assert (folder / "pack.partial" / "rows-00002.array_record").exists()
    (folder / "away").rename(parquet)
    pack(folder, "pack", *sources)
    assert content(folder / "pack") == content(folder / "whole")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_must_be_above_zero(folder, weight):
    with pytest.raises(UserError, match="a weight must be above 0"):
        pack(folder, "pack", ("a.json", weight))
    assert not (folder / "pack.partial").exists()


KILLED = """
import os, signal, sys
from victor_jax.data.json_rows import JsonRecords
whole = JsonRecords.__getitem__
def once(self, index):
    if index == 9:
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    return whole(self, index)
JsonRecords.__getitem__ = once
from victor_jax.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -9), ("SIGTERM", 143)])
def test_a_command_that_is_killed_goes_on_when_it_is_given_again(folder, name, status):
    command = ["pack-data", f"{folder / 'a.json'}=2", str(folder / "b.parquet"), f"--images={folder / 'images'}"]
    command += ["--rows-per-shard=4"]
    assert cli.main([*command, str(folder / "whole")]) == 0
    command.append(str(folder / "pack"))
    killed = subprocess.run([sys.executable, "-c", KILLED, name, *command], capture_output=True, timeout=60)
    assert killed.returncode == status, killed.stderr
    assert not (folder / "pack").exists()
    assert (folder / "pack.partial" / "rows-00003.array_record").exists()
    assert cli.main(command) == 0
    assert content(folder / "pack") == content(folder / "whole")
