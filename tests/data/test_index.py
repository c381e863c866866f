import json
import os

import numpy as np
import pytest
from llava_folder import TOKENS_PER_IMAGE, image_row, reader, rows_of_every_kind, text_row, turns

from victor_jax.data import index as index_module
from victor_jax.data.index import build_index, index_key, open_index
from victor_jax.data.labels import IGNORE, IMAGE
from victor_jax.data.records import BadRow
from victor_jax.errors import UserError


def built(its, **more):
    return build_index(its, more.pop("workers", 0), progress=False, **more)


def test_lengths_are_those_of_the_text_and_images_of_each_row(tmp_path):
    its = reader(tmp_path, rows_of_every_kind())
    index = built(its)
    assert index.bad == []
    assert index.image_counts[:4].tolist() == [1, 2, 1, 0]
    for row in (0, 1, 3):
        ids = its[row].ids
        assert index.text_lengths[row] == (ids != IMAGE).sum()
        assert index.visual_lengths[row] == TOKENS_PER_IMAGE * (ids == IMAGE).sum()


def test_a_changed_answer_of_the_same_length_changes_its_checksum(tmp_path):
    rows = rows_of_every_kind()
    before = built(reader(tmp_path, rows))
    rows[0]["conversations"][1]["value"] = rows[0]["conversations"][1]["value"][::-1]
    after = built(reader(tmp_path, rows))
    np.testing.assert_array_equal(before.text_lengths[1:], after.text_lengths[1:])
    assert np.flatnonzero(before.checksums != after.checksums).tolist() == [0]


def test_bad_rows_are_listed_with_their_index_and_reason(tmp_path):
    rows = [text_row(3), image_row("0.png", 3), text_row(3), text_row(3)]
    rows[1]["conversations"][1]["value"] = "  "
    rows[3]["conversations"].pop()
    index = built(reader(tmp_path, rows))
    assert [row for row, _ in index.bad] == [1, 3]
    assert "answer" in index.bad[0][1]
    assert (index.text_lengths > 0).tolist() == [True, False, True, False]


def test_too_many_bad_rows_are_an_error_that_names_the_first(tmp_path):
    rows = [text_row(1), *({"conversations": turns("Why?", "")} for _ in range(9))]
    its = reader(tmp_path, rows)
    assert len(built(its, max_bad_rows=9).bad) == 9
    with pytest.raises(UserError, match=r"max_bad_rows=8 .*data\.json, row 1 .*answer.* row 5 .*check-data"):
        built(its, max_bad_rows=8)


def test_worker_processes_measure_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "FEWEST", 10)
    monkeypatch.setattr(index_module, "CHUNK", 7)
    rows = rows_of_every_kind()
    rows[20] = {"conversations": []}
    its = reader(tmp_path, rows)
    alone, together = built(its), built(its, workers=2)
    np.testing.assert_array_equal(alone.text_lengths, together.text_lengths)
    np.testing.assert_array_equal(alone.image_counts, together.image_counts)
    np.testing.assert_array_equal(alone.checksums, together.checksums)
    assert alone.bad == together.bad == [(20, alone.bad[0][1])]


def length_of(its, row):
    """Positions with the images expanded and no registers."""
    ids = its[row].ids
    return len(ids) + (TOKENS_PER_IMAGE - 1) * int((ids == IMAGE).sum())


@pytest.mark.parametrize("row", [image_row("0.png", 60), text_row(60)], ids=["image", "text"])
def test_the_limit_holds_after_the_images_are_expanded(tmp_path, row):
    whole = reader(tmp_path, [row])
    length = length_of(whole, 0)
    for limit in (length - 1, length, length + 1):
        cut = again(whole, max_length=limit)
        assert length_of(cut, 0) == min(limit, length)
        kept = len(cut[0].ids)
        np.testing.assert_array_equal(cut[0].ids, whole[0].ids[:kept])
        np.testing.assert_array_equal(cut[0].targets, whole[0].targets[:kept])


def test_a_row_that_loses_all_that_is_supervised_is_bad(tmp_path):
    row = image_row("0.png", 1)
    row["conversations"][0]["value"] += " cat" * 100
    its = reader(tmp_path, [row], max_length=100)
    with pytest.raises(BadRow, match="within max_length=100"):
        its[0]


def test_an_image_is_never_cut_in_two(tmp_path):
    row = {"image": ["0.png", "2.png"], "conversations": turns("<image> a", "b", "c <image>", "d")}
    whole = reader(tmp_path, [row])[0]
    second = int(np.flatnonzero(whole.ids == IMAGE)[1])
    in_the_middle = second + TOKENS_PER_IMAGE - 1 + TOKENS_PER_IMAGE // 2
    its = reader(tmp_path, [row], max_length=in_the_middle)
    assert its[0].images == ("0.png",)
    assert len(its[0].ids) == second
    assert (its[0].targets != IGNORE).any()


class Unreadable:
    """Records that nobody may read."""

    def __len__(self):
        return 40

    def __getitem__(self, row):
        raise AssertionError("the index was made again")


def again(its, **changes):
    return type(its)(**{**its.__dict__, **changes})


def test_the_index_is_kept(tmp_path):
    rows = rows_of_every_kind()
    rows[7] = {"conversations": []}
    its = reader(tmp_path, rows)
    first = open_index(its, tmp_path / "data.json", tmp_path / "cache", 0, progress=False)
    kept = open_index(again(its, records=Unreadable()), tmp_path / "data.json", tmp_path / "cache", 0, progress=False)
    np.testing.assert_array_equal(kept.text_lengths, first.text_lengths)
    np.testing.assert_array_equal(kept.image_counts, first.image_counts)
    assert kept.bad == first.bad != []


def test_a_kept_index_still_counts_its_bad_rows(tmp_path):
    its = reader(tmp_path, [text_row(1), {"conversations": []}])
    data, cache = tmp_path / "data.json", tmp_path / "cache"
    open_index(its, data, cache, 0, max_bad_rows=1, progress=False)
    with pytest.raises(UserError, match="max_bad_rows=0"):
        open_index(its, data, cache, 0, max_bad_rows=0, progress=False)


def test_a_kept_index_that_was_cut_off_is_made_again(tmp_path):
    its = reader(tmp_path, rows_of_every_kind())
    first = open_index(its, tmp_path / "data.json", tmp_path / "cache", 0, progress=False)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    again = open_index(its, tmp_path / "data.json", tmp_path / "cache", 0, progress=False)
    np.testing.assert_array_equal(again.text_lengths, first.text_lengths)


def test_the_key_changes_with_all_that_the_index_depends_on(tmp_path):
    its = reader(tmp_path, rows_of_every_kind())
    data = tmp_path / "data.json"
    other_tokenizer = reader(tmp_path, rows_of_every_kind(), template="plain")
    keys = [
        index_key(its, data),
        index_key(again(its, max_length=99), data),
        index_key(again(its, tokens_per_image=4), data),
        index_key(other_tokenizer, data),
    ]
    data.write_text(json.dumps(rows_of_every_kind(seed=1)))
    keys.append(index_key(its, data))
    os.utime(data, (1, 1))
    keys.append(index_key(its, data))
    assert len(set(keys)) == len(keys)
    assert index_key(its, data) == keys[-1]
