"""A pack gives back the rows and the image files it was made of, and is whole or not there."""

import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from victor_jax import cli
from victor_jax.data.images import BadImage
from victor_jax.data.pack import write_pack
from victor_jax.data.records import BadRow, parse_record
from victor_jax.data.sources import open_source
from victor_jax.errors import UserError

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]


@pytest.fixture
def source(tmp_path):
    """23 rows over 5 images, two of them shown by one row, and one that is not there."""
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 8 + i, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "coco" / f"{i}.jpg")
    rows = [{"id": i, "image": f"coco/{i % 6}.jpg", "conversations": TALK} for i in range(20)]
    rows += [{"image": ["coco/1.jpg", "coco/2.jpg"], "conversations": TALK}, {"image": 3}, {"conversations": TALK}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def packed(source, rows_per_shard=7):
    return pack(source, source / "images", rows_per_shard)


def pack(source, images, rows_per_shard=7):
    write_pack([(str(source / "rows.json"), 1.0)], images and str(images), source / "pack", rows_per_shard)
    return source / "pack"


@pytest.mark.parametrize("rows_per_shard", [1, 7, 1000])
def test_rows_and_images_are_those_of_the_files(source, rows_per_shard):
    records = open_source(packed(source, rows_per_shard))
    plain = open_source(source / "rows.json", source / "images")
    assert len(records) == len(plain) == 23
    for index in (22, *range(22)):
        raw, wanted = records[index], plain[index]
        assert {**raw, "image": None} == {**wanted, "image": None}
        if index in (5, 11, 17, 21):
            continue  # the missing image, and what is no path at all
        names = parse_record(wanted, index).images
        for ours, name in zip(parse_record(raw, index).images, names, strict=True):
            np.testing.assert_array_equal(np.asarray(records.open(ours)), np.asarray(plain.open(name)))
    assert list(records) == [records[index] for index in range(23)]


def test_each_image_is_stored_once_and_byte_for_byte(source):
    shard = next(packed(source).glob("images-*"))
    data = shard.read_bytes()
    for i in range(5):
        assert data.count((source / "images" / "coco" / f"{i}.jpg").read_bytes()) == 1


def test_a_bad_row_and_a_missing_image_stay_bad_under_the_same_number(source):
    records = open_source(packed(source))
    with pytest.raises(BadRow, match="row 21"):
        parse_record(records[21], 21)
    (path,) = parse_record(records[5], 5).images
    with pytest.raises(BadImage, match=r"image coco/5.jpg: it could not be read when the pack was made"):
        records.open(path)


@pytest.mark.parametrize("path", ["5/coco/1.jpg", "coco/1.jpg", "-1/coco/1.jpg", ""])
def test_a_path_that_is_none_of_the_pack_is_a_bad_image(source, path):
    with pytest.raises(BadImage, match="the pack has no such image"):
        open_source(packed(source)).open(path)


def test_a_pack_that_was_read_goes_to_other_processes(source):
    records = open_source(packed(source))
    records.open(records[0]["image"][0])
    records = pickle.loads(pickle.dumps(records))
    assert records.open(records[20]["image"][1]).size == (10, 9)


def test_a_pack_needs_no_image_folder_and_takes_none(source):
    with pytest.raises(UserError, match="give no image folder"):
        open_source(packed(source), source / "images")


def test_a_shard_that_is_absent_or_cut_off_is_named(source):
    folder = packed(source)
    shard = folder / "rows-00001.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"rows-00001.array_record has 0 records and should have 7"):
        open_source(folder)[7]
    shard.unlink()
    with pytest.raises(UserError, match=r"lacks rows-00001.array_record"):
        open_source(folder)


def test_a_folder_that_is_no_pack_is_refused(source):
    with pytest.raises(UserError, match=r"has no pack.json"):
        open_source(source / "images")


def test_the_wrong_image_folder_leaves_nothing(source):
    (source / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"none of the images of .*rows\.json can be read .* the last: image coco/5\.jpg"
    ):
        pack(source, source / "empty")
    assert sorted(path.name for path in source.iterdir()) == ["empty", "images", "rows.json"]


def test_rows_with_images_need_a_folder(source):
    with pytest.raises(UserError, match="--images=DIR"):
        pack(source, None)
    assert not (source / "pack").exists()


def test_the_command_packs_and_says_what_is_missing(source, capsys):
    arguments = [str(source / "rows.json"), f"--images={source / 'images'}", str(source / "pack")]
    assert cli.main(["pack-data", *arguments]) == 0
    out, bar = capsys.readouterr()
    assert "23 rows, 5 images" in out
    assert "1 images or rows cannot be read" in out
    assert "coco/5.jpg" in out
    assert "23/23" in bar
    assert cli.main(["pack-data", *arguments]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert not (source / "pack.partial").exists()


def test_a_damaged_record_is_a_bad_row_or_image_and_ends_nothing(source):
    folder = packed(source, 1000)
    for kind, inside in (("rows", b'"id"'), ("images", (source / "images" / "coco" / "2.jpg").read_bytes()[-40:-20])):
        shard = folder / f"{kind}-00000.array_record"
        data = bytearray(shard.read_bytes())
        # Rows are compressed: whatever is at the beginning of the first one.
        at = data.index(inside) if inside in data else data.index(b"\x28\xb5\x2f\xfd") + 20
        data[at] ^= 255
        shard.write_bytes(data)
    records = open_source(folder)
    with pytest.raises(BadRow, match="row 0: its bytes in the pack are damaged"):
        records[0]
    (path,) = parse_record(records[2], 2).images
    with pytest.raises(BadImage, match=r"coco/2.jpg: its bytes in the pack are damaged"):
        records.open(path)
    (path,) = parse_record(records[1], 1).images
    assert records.open(path).size == (9, 9)


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_no_changed_byte_of_a_shard_gives_another_record(source, kind):
    """Each record, and what is around it, has a checksum of ArrayRecord's."""
    folder = packed(source, 1000)

    def read(records, row):
        try:
            return records[row], [records.read(path) for path in parse_record(records[row], row).images]
        except (BadRow, BadImage):
            return None

    whole = [read(open_source(folder), row) for row in range(5)]
    shard = folder / f"{kind}-00000.array_record"
    data, found, refused = shard.read_bytes(), [], []
    used = len(data[: 1 << 16].rstrip(b"\0"))
    for at in np.random.default_rng(0).choice(used, 60, replace=False).tolist():
        shard.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            records = open_source(folder)
            found += [(read(records, row), row) for row in range(5)]
        except UserError as error:
            refused.append(str(error))
    assert all("it is not whole" in sentence for sentence in refused)
    assert all(one in (None, whole[row]) for one, row in found)
    assert (None, 0) in found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"version": 1, "rows": 3, "images": {}}',
        *(
            '{"version": 1, "rows": {"rows-00000.array_record": COUNT}, "images": {}}'.replace("COUNT", count)
            for count in ('"x"', "-1", "0.5", "null")
        ),
    ],
)
def test_a_damaged_pack_json_is_one_sentence(source, text):
    folder = packed(source)
    (folder / "pack.json").write_text(text)
    with pytest.raises(UserError, match=r"pack.json is damaged"):
        open_source(folder)


def test_a_pack_without_rows_is_refused(source):
    folder = packed(source)
    (folder / "pack.json").write_text('{"version": 1, "rows": {}, "images": {}}')
    with pytest.raises(UserError, match=r"pack holds no rows"):
        open_source(folder)


@pytest.mark.parametrize("name", ["pack.json", "rows-00001.array_record", "images-00000.array_record"])
def test_a_pipe_in_place_of_a_file_of_a_pack_is_refused_at_once(source, name):
    file = packed(source) / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=rf"(has no|lacks) {name}"):
        open_source(file.parent)


def test_a_pack_that_the_first_version_wrote_is_read(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "pack_v1" / "pack.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    records = open_source(tmp_path / "pack")
    rows = open_source(tmp_path / "rows.json", tmp_path / "images")
    assert [row["id"] for row in records] == list("abcde")
    assert records[1] == rows[1]
    for index in (0, 2):
        names, paths = parse_record(rows[index], index).images, parse_record(records[index], index).images
        assert [records.read(path) for path in paths] == [rows.read(name) for name in names]
    with pytest.raises(BadImage, match=r"gone\.png: it could not be read when the pack was made"):
        records.open(parse_record(records[3], 3).images[0])
    with pytest.raises(BadRow, match="row 4"):
        parse_record(records[4], 4)
