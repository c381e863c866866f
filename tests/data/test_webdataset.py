"""Tar members with one key are one row with its images."""

import pickle

import pytest
from image_files import image_bytes, turns, write_tar

from victor_jax.data.records import BadRow, parse_record
from victor_jax.data.sources import open_source
from victor_jax.errors import UserError

LLAVA = {"id": "a", "image": "coco/1.jpg", "conversations": turns("<image>\nWhat?", "Red.")}


def test_a_llava_row_a_caption_and_text_alone(tmp_path):
    long = "deep/" + "x" * 150  # beyond the name field of a tar header
    members = {
        "train/a.jpg": image_bytes(0, "JPEG"),
        "train/a.json": LLAVA,
        "train/b.txt": "A réd bus.\n".encode(),
        "train/b.png": image_bytes(1),
        "train/c.json": {"conversations": turns("Why?", "So.")},
        f"{long}.json": LLAVA,
        f"{long}.webp": image_bytes(2, "WEBP"),
        "README.md": b"no row",
        "._d.jpg": b"a Mac's",
    }
    records = open_source(write_tar(tmp_path / "a.tar", members))
    parsed = [parse_record(row, number) for number, row in enumerate(records)]
    assert [[records.read(path) for path in record.images] for record in parsed] == [
        [members["train/a.jpg"]],
        [members["train/b.png"]],
        [],
        [members[f"{long}.webp"]],
    ]
    assert [turn.text for turn in parsed[0].turns] == ["<image>\nWhat?", "Red."]
    assert [turn.text for turn in parsed[1].turns] == ["<image>", "A réd bus."]
    assert records.describe(1).endswith("a.tar, row 1 (train/b)")
    assert records.describe(3).endswith(f"a.tar, row 3 ({long})")


def test_several_images_are_in_the_order_of_their_numbers(tmp_path):
    members = {f"a.{number}.png": image_bytes(number) for number in (10, 2, 0)}
    members["a.json"] = {"conversations": turns("<image> <image> <image>?", "Red.")}
    records = open_source(write_tar(tmp_path / "a.tar", members))
    assert [records.read(path) for path in records[0]["image"]] == [image_bytes(number) for number in (0, 2, 10)]


def test_a_json_without_a_conversation_leaves_the_word_to_the_caption(tmp_path):
    members = {"a.jpg": image_bytes(0), "a.json": {"width": 7, "url": "x"}, "a.txt": b"A bus."}
    records = open_source(write_tar(tmp_path / "a.tar", members))
    assert parse_record(records[0], 0).turns[1].text == "A bus."


def test_a_folder_of_tar_files_goes_to_other_processes(tmp_path):
    write_tar(tmp_path / "1.tar", {"c.json": LLAVA, "c.png": image_bytes(2)})
    write_tar(tmp_path / "0.tar", {"a.json": LLAVA, "a.png": image_bytes(0), "b.json": LLAVA, "b.png": image_bytes(1)})
    records = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert [records.read(path) for row in records for path in row["image"]] == [
        image_bytes(number) for number in range(3)
    ]
    assert records.describe(2).endswith("1.tar, row 2 (c)")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.json": b"{"}, "its .json cannot be read"),
        ({"a.json": b"[" * 100_000}, "its .json cannot be read"),
        ({"a.json": [1]}, "its .json is not an object"),
        ({"a.txt": b"\xff"}, "its .txt cannot be read"),
        ({"a.png": b""}, "no 'conversations'"),
        ({"a.json": {"caption": "x"}, "a.png": b""}, "no 'conversations'"),
    ],
)
def test_a_bad_row_says_why(tmp_path, members, reason):
    records = open_source(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(BadRow, match=reason):
        parse_record(records[0], 0)


@pytest.mark.parametrize("end", [0, 300, 1000, 2000])
def test_a_file_that_is_no_whole_tar_is_refused(tmp_path, end):
    path = write_tar(tmp_path / "a.tar", {"a.json": LLAVA, "b.json": LLAVA})
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"a\.tar is not a whole, uncompressed tar file"):
        open_source(path)


def test_a_damaged_header_does_not_end_the_file_in_silence(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.json": LLAVA, "b.json": LLAVA})
    data = bytearray(path.read_bytes())
    data[1024] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match="no end of archive at byte 1024"):
        open_source(path)


def test_a_tar_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no rows"):
        open_source(write_tar(tmp_path / "a.tar", {"README.md": b"x"}))
