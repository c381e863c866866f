"""Rows are found and parsed one by one as json.load would give them, and a broken file is named at once."""

import gzip
import json
import pickle
import subprocess
import sys

import pytest

from victor_jax.data import json_rows
from victor_jax.data.sources import open_source
from victor_jax.errors import UserError

ROWS = [
    {"id": 'a "quoted" } ] , { text', "conversations": []},
    {"id": "back\\slash\\", "nested": {"list": [1, [2, {"}": "]"}]]}},
    {"id": "猫 café 😀 \ud83d", "n": -1.5e3, "none": None, "true": True},
    {},
    {"id": "line\nbreak\ttab", "long": "x" * 500},
]


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def open_rows(path):
    return open_source(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_rows_are_those_of_json_load_wherever_the_file_is_cut(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, **form))
    assert list(open_rows(path)) == ROWS


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_text_beyond_ascii_is_read_wherever_the_file_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    rows = [{"id": "猫 café 😀" * 3}, {"é": "😀"}, {"id": "plain"}]
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(rows, ensure_ascii=False, indent=1).encode() + b"\n")
    assert list(open_rows(path)) == rows


def test_lines_are_rows_and_blank_ones_are_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n  \n")
    assert list(open_rows(path)) == ROWS
    path.write_bytes(b"\xef\xbb\xbf" + '{"id": "猫"}\r\n{"id": 2}'.encode())
    assert list(open_rows(path)) == [{"id": "猫"}, {"id": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" [ ] ", "holds no rows"),
        ('{"a": []}', r"line 1 .*expected a JSON list, found '{'"),
        ("not json", "line 1 .*expected a JSON list, found 'n'"),
        ('[\n{"a": 1},\n3]', "line 3 .*row 1 is not an object"),
        ('[{"a": 1}, "b"]', "row 1 is not an object"),
        ('[{"a": 1}, []]', "row 1 is not an object"),
        ('[{"a": 1},\n {"b" 2}]', r"line 2 \(byte 17\): row 1 is not JSON: Expecting ':'"),
        ('[{"a": 1},\n {"b": 2, "c":\n {"d": tru}}, {"e": 1}]', r"line 3 .*row 1 is not JSON: Expecting value"),
        ('[{"é": 1},\n {"é": x}, {"a": "long enough to stand in between"}]', r"\(byte 20\)"),
        ('[{"a": 1} {"b": 2}]', "expected ',' or ']' after row 0, found '{'"),
        ('[{"a": 1},]', "a comma too many before row 1"),
        (gzip.compress(b"[]", mtime=0), r"rows.json is compressed \(gzip\): unpack it"),
        ('[{"a": 1}, {"b": "cut', "ends in the middle of row 1: is it cut off"),
        ('[{"a": 1}, {"b": 2', "ends in the middle of row 1: is it cut off"),
        ('[{"a": 1},', "ends in the middle of row 1: is it cut off"),
        ('[{"a": 1}', "the file ends after row 0 and the list is not closed"),
        ('[{"a": 1}] 5', "expected the end of the file after the list, found '5'"),
        (b'[{"a": 1},\n{"b": "\xff"}]', r"\(byte 18\): not UTF-8 text"),
        ('[{"a": 1},\n{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]", "line 2 .*: row 1 cannot be parsed"),
        ('[{"a": 1},\n{"a": ' + "1" * 5000 + "}]", "line 2 .*: row 1 cannot be parsed"),
        ('[{"a": 1}]'.encode("utf-16"), r"\(byte 0\): not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("chunk", [4, 1 << 20])
def test_a_broken_list_is_named_with_its_place(tmp_path, monkeypatch, chunk, text, message):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        open_rows(path)
    assert "rows.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ('{"a": 1}\n{"b": \n', r"line 2 \(byte 9\): the file ends in the middle of row 1"),
        ('{"a": 1}\n{"b" 2}\n{"c": 3}\n', "line 2 .*: row 1 is not JSON: Expecting ':'"),
        ('{"a": 1}\n{"b": "open}\n{"c": 3}\n', "line 2 .*: row 1 is not JSON: Invalid control character"),
        ('{"a": 1}\n\n[1]\n', "line 3 .*: row 1 is not an object"),
        ('{"a": 1},\n{"b": 2}', "line 1 .*: not JSON: a comma too many before row 1"),
        (b'{"a": "\xff"}\n', "line 1 .*: not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        open_rows(path)


def test_a_string_that_never_ends_is_not_read_into_memory_to_the_end_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", 64)
    monkeypatch.setattr(json_rows, "MAX_ROW", 1000)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "' + "x" * 100_000 + '"}]')
    with pytest.raises(UserError, match="row 0 is not JSON: Unterminated string"):
        open_rows(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_rows(tmp_path / "rows.json")


def test_no_row_beyond_the_last(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}]')
    records = open_rows(path)
    for index in (1, -1):
        with pytest.raises(IndexError):
            records[index]
    assert "rows.json, row 0 (byte 1)" in records.describe(0)


def test_pickled_it_reads_on_and_carries_no_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": i, "text": "x" * 1000} for i in range(100)]))
    records = open_rows(path)
    assert records[3]["id"] == 3
    pickled = pickle.dumps(records)
    assert len(pickled) < 4000
    assert pickle.loads(pickled)[99]["id"] == 99


def test_a_file_that_changes_in_between_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2}]')
    records = open_rows(path)
    path.write_text('[{"aaaa": 1}, {"a": 2}]')
    with pytest.raises(UserError, match="was changed"):
        records[1]


MEASURE = """
import resource, sys, numpy
from victor_jax.data.sources import open_source
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
records = open_source(sys.argv[1])
assert len(records) == 665_000
assert all(records[i]["id"] == i for i in range(0, 665_000, 500))
print((used() - before) / 1024)
"""


def test_the_index_of_665_000_rows_takes_little_memory(tmp_path):
    """The file has 120 MB: not even its text is ever held. (1 GB of rows takes the same, in 10 to 15 seconds.)"""
    path = tmp_path / "rows.json"
    turns = json.dumps([human("<image>\nWhat are the colors of the bus in the image?"), gpt("White and red.")])
    with path.open("w") as file:
        for i in range(665_000):
            file.write(f'{"," if i else "["}\n{{"id": {i}, "image": "coco/{i:012d}.jpg", "conversations": {turns}}}')
        file.write("]")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=120)
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60  # MB
