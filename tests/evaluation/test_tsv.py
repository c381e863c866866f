import base64
import io

import pytest
from PIL import Image

from victor_jax.errors import UserError
from victor_jax.evaluation.mmbench import CN, MMBENCH_CN
from victor_jax.evaluation.tsv import PictureTable

PICTURE = base64.b64encode(bytes(range(256)) * 800).decode()  # beyond the 128 KiB at which csv stops


def table(tmp_path, *rows):
    file = tmp_path / "table.tsv"
    file.write_text("\n".join(["\t".join(("index", "question", "image")), *rows]) + "\n", encoding="utf-8")
    return PictureTable(file, "question")


def test_a_cell_may_hold_tabs_quotes_and_line_ends(tmp_path):
    held = table(tmp_path, f'1\t"two\nlines, ""quoted""\tand é"\t{PICTURE}', f"2\tplain\t{PICTURE}", "3\tagain\t2")
    assert held.rows[1]["question"] == 'two\nlines, "quoted"\tand é'
    assert held.picture("1") == held.picture("2") == base64.b64decode(PICTURE)
    assert [held.picture_of(index) for index in (1, 2, 3)] == ["1", "2", "2"]


def test_rotations_share_one_picture(small):
    file = small / "mmbench_cn" / CN
    assert {question.images for question in MMBENCH_CN.read(file)} == {(str(index),) for index in range(4)}
    assert Image.open(io.BytesIO(MMBENCH_CN.pictures(file)("3"))).size == (96, 72)


@pytest.mark.parametrize(("rows", "message"), [
    ([f"1\tx\t{PICTURE}", "2\ty"], "row 2, has 2 cells, expected 3: is the file cut off"),
    ([f"1\tx\t{PICTURE}"] * 2, "row 2, has the index 1 of an earlier row"),
    ([f"one\tx\t{PICTURE}"], "row 1, has 'one': expected the index of a row"),
    (["1\tx\t"], "row 1, column 'image', has '': expected the index"),
    (["1\tx\t2"], "row 1 takes its picture from row 2, which has none"),
    (["1\tx\t2", "2\ty\t1"], "row 1 takes its picture from row 2, which has none"),
    ([], "holds no rows"),
])  # fmt: skip
def test_a_damaged_table_is_refused_before_it_is_used(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, *rows)


def test_a_column_that_is_not_there_is_named(tmp_path):
    (tmp_path / "table.tsv").write_text("index\timage\n")
    with pytest.raises(UserError, match="no column 'question'"):
        PictureTable(tmp_path / "table.tsv", "question")


def test_a_picture_that_is_not_base64_names_its_row(tmp_path):
    with pytest.raises(UserError, match="the picture of row 5 cannot be read"):
        table(tmp_path, f"5\tx\t{'#' * 100}").picture("5")
