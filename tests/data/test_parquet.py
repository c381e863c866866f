"""Parquet rows are LLaVA rows with their own images, read by row group."""

import builtins
import json
import pickle
import threading

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import FINEVISION, image_bytes, turns, write_finevision, write_llava_next
from tokenizers_tiny import sentencepiece_tokenizer

from victor_jax.data import parquet
from victor_jax.data.batches import BatchSource
from victor_jax.data.images import BadImage
from victor_jax.data.index import build_index
from victor_jax.data.labels import Reader
from victor_jax.data.records import BadRow, parse_record
from victor_jax.data.schedule import Schedule
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError


def test_rows_and_images_of_llava_next(tmp_path):
    records = open_source(write_llava_next(tmp_path / "a.parquet"))
    assert len(records) == 7
    for number in (6, *range(6)):
        record = parse_record(records[number], number)
        if number % 3 == 2:
            assert record.images == ()
            assert record.turns[0].text == f"Why {number}?"
        else:
            assert record.turns[0].text == f"<image>\nWhat {number}?"
            assert [records.read(path) for path in record.images] == [image_bytes(number)]
    assert records.describe(4).endswith("a.parquet, row 4")
    with pytest.raises(IndexError):
        records[7]


def test_rows_of_finevision_have_their_images_before_the_first_question(tmp_path):
    records = open_source(write_finevision(tmp_path / "f.parquet"))
    parsed = [parse_record(records[number], number) for number in range(4)]
    assert [record.turns[0].text for record in parsed] == [
        "<image>\n<image>\nWhat 0?",
        "<image>\nWhat 1?",
        "What 2?",
        "What 3?",
    ]
    assert [turn.text for turn in parsed[0].turns[1:]] == ["Red.", "And?", "Blue."]
    assert [[records.read(path) for path in record.images] for record in parsed] == [
        [image_bytes(0), image_bytes(1)],
        [image_bytes(2)],
        [],
        [],
    ]


def test_a_folder_of_files_is_one_source(tmp_path):
    write_llava_next(tmp_path / "train-00001.parquet", 5, first=7)
    write_llava_next(tmp_path / "train-00000.parquet", 7)
    records = open_source(tmp_path)
    assert [row["id"] for row in records] == [str(number) for number in range(12)]
    assert records.read(records[10]["image"][0]) == image_bytes(10)
    assert records.describe(10).endswith("train-00001.parquet, row 3")


def test_the_text_is_read_without_image_bytes_and_group_by_group(tmp_path, monkeypatch):
    path = write_llava_next(tmp_path / "a.parquet")
    read = []
    whole = pq.ParquetFile.read_row_group

    def spy(self, number, columns):
        read.append((number, any("bytes" in column for column in columns)))
        return whole(self, number, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    records = open_source(path)
    assert len(list(records)) == 7
    assert read == [(0, False), (1, False), (2, False)]


def test_processes_and_threads_read_the_same(tmp_path):
    opened = open_source(write_llava_next(tmp_path / "a.parquet", 30, 4))
    records = pickle.loads(pickle.dumps(opened))
    wrong = []

    def look(numbers):
        for number in numbers:
            wrong.extend(path for path in records[number]["image"] if records.read(path) != image_bytes(number))

    threads = [threading.Thread(target=look, args=(order,)) for order in (range(30), range(29, -1, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_batches_are_those_of_the_same_rows_in_json(tmp_path):
    write_llava_next(tmp_path / "a.parquet", 24)
    rows = []
    for number, row in enumerate(open_source(tmp_path / "a.parquet")):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number))
        rows.append(row | {"image": [f"{number}.png" for _ in row["image"]]})
    (tmp_path / "a.json").write_text(json.dumps(rows))

    def batches(name, images):
        records = open_source(tmp_path / name, images)
        reader = Reader(records, TEMPLATES["vicuna_v1"], sentencepiece_tokenizer(False), 4, 200)
        schedule = Schedule(build_index(reader, 0, progress=False), 8, 0, registers=2)
        return [BatchSource(reader, schedule, 2, 12, "pad")[step] for step in range(3)]

    for found, expected in zip(batches("a.parquet", None), batches("a.json", tmp_path), strict=True):
        assert not found.bad
        jax.tree.map(np.testing.assert_array_equal, found.parts, expected.parts)


def test_what_is_not_in_a_row_makes_it_bad(tmp_path):
    rows = [
        {"images": [], "texts": None},
        {"images": [{"bytes": None, "path": "a.png"}], "texts": [{"user": "What?", "assistant": "Red."}]},
        {"images": [], "texts": [{"user": None, "assistant": "Red."}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows, FINEVISION), tmp_path / "f.parquet")
    records = open_source(tmp_path / "f.parquet")
    for number, reason in ((0, "no 'conversations'"), (2, "turn 0 has no text")):
        with pytest.raises(BadRow, match=reason):
            parse_record(records[number], number)
    with pytest.raises(BadImage, match="its bytes are not in the file"):
        records.open(records[1]["image"][0])


def test_a_damaged_row_group_makes_its_rows_bad(tmp_path):
    path = write_llava_next(tmp_path / "a.parquet")
    group = pq.ParquetFile(path).metadata.row_group(1)
    at = group.column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    records = open_source(path)
    assert records[0]["id"] == "0"
    with pytest.raises(BadRow, match=r"row 4: row group 1 of .*a\.parquet is damaged"):
        records[4]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"], "label": [1]}, "has the columns label, text: expected 'conversations' and 'image'"),
        ({"conversations": [turns("a", "b")], "image": ["a.png"]}, "'image' must hold structs of 'bytes' and 'path'"),
        ({"conversations": pa.array([], pa.list_(pa.struct([("from", pa.string())])))}, "holds no rows"),
    ],
)
def test_a_file_with_other_columns_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"a.parquet.* {message}"):
        open_source(tmp_path / "a.parquet")


def test_text_alone_needs_no_image_column(tmp_path):
    pq.write_table(pa.table({"conversations": [turns("a", "b")]}), tmp_path / "a.parquet")
    assert parse_record(open_source(tmp_path / "a.parquet")[0], 0).images == ()


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file that can be read"):
        open_source(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds its images: give no image folder"):
        open_source(write_llava_next(tmp_path / "b.parquet"), tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_llava_next(tmp_path / "a.parquet")
    whole = builtins.__import__

    def without(name, *more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    parquet._read.cache_clear()
    with pytest.raises(UserError, match=r'pip install "victor_jax\[data\]"'):
        open_source(path)
