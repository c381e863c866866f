"""What every format says of a file that is no file, that vanishes, and that is rewritten while it is in use."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import LLAVA_NEXT, turns, write_tar
from tokenizers_tiny import sentencepiece_tokenizer

from victor_jax.data.batches import BatchSource
from victor_jax.data.index import build_index
from victor_jax.data.labels import Reader
from victor_jax.data.pack import write_pack
from victor_jax.data.schedule import Schedule
from victor_jax.data.sources import open_source
from victor_jax.data.templates import TEMPLATES
from victor_jax.errors import UserError


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.tar", "x.parquet", "folder/x.tar", "folder/x.parquet"])
def test_a_pipe_or_a_folder_is_refused_at_once(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file)
    path = file.parent if name.startswith("folder") else file
    with pytest.raises(UserError, match=rf"{file.name} is a pipe"):
        open_source(path)
    if path == file and not name.endswith(("tar", "parquet")):
        file.unlink()
        file.mkdir()
        with pytest.raises(UserError, match=r"has no pack\.json"):
            open_source(path)


def rows(answer):
    return [{"id": str(number), "conversations": turns("What?", answer)} for number in range(4)]


def write_json(folder, answer):
    (folder / "x.json").write_text(json.dumps(rows(answer)))
    return folder / "x.json"


def write_tar_file(folder, answer):
    return write_tar(folder / "x.tar", {f"{number}.json": row for number, row in enumerate(rows(answer))})


def write_parquet(folder, answer):
    pq.write_table(pa.Table.from_pylist(rows(answer), LLAVA_NEXT), folder / "x.parquet", row_group_size=1)
    return folder / "x.parquet"


def write_packed(folder, answer):
    """Written again over the file that is open, as `cp` does it."""
    fresh = folder / answer
    write_pack([(str(write_json(folder, answer)), 1.0)], None, fresh, rows_per_shard=1)
    (folder / "pack").mkdir(exist_ok=True)
    for file in fresh.iterdir():
        (folder / "pack" / file.name).write_bytes(file.read_bytes())
    return folder / "pack"


FORMATS = [write_json, write_tar_file, write_parquet, write_packed]


def opened(path):
    reader = Reader(open_source(path), TEMPLATES["vicuna_v1"], sentencepiece_tokenizer(False), 4, 200)
    schedule = Schedule(build_index(reader, 0, progress=False), 1, 0, registers=0)
    return BatchSource(reader, schedule, 0, 12, "pad")


@pytest.mark.parametrize("write", FORMATS)
def test_data_rewritten_in_use_ends_the_run_with_its_name(tmp_path, write):
    source = opened(write(tmp_path, "Red."))
    assert not source[0].bad
    path = write(tmp_path, "Bad.")
    os.utime(path, (5, 5))
    with pytest.raises(UserError, match=rf"{path.name}.* changed while it was in use"):
        [source[step] for step in range(1, 4)]


@pytest.mark.parametrize("write", FORMATS[:3])
def test_data_that_vanishes_in_use_is_one_sentence(tmp_path, write):
    path = write(tmp_path, "Red.")
    source = opened(path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} (is not a parquet file that )?can"):
        [source[step] for step in range(4)]
