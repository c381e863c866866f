"""Folders and files that are whole or absent."""

import threading
import time

import pytest

from victor_jax.errors import UserError
from victor_jax.files import check_file, new_folder, partial_of, write_whole


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "x.json"
    write_whole(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "second \ud800")
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_a_thread_writes_after_the_error_is_removed_too(tmp_path):
    def write_on(folder):
        for number in range(200):
            (folder / str(number)).write_text("late")
            time.sleep(0.001)

    def fail():
        with new_folder(tmp_path / "out") as folder:
            (folder / "begun").mkdir()
            writer = threading.Thread(target=write_on, args=(folder / "begun",))
            threading.excepthook, before = lambda _: None, threading.excepthook  # its folder vanishes
            try:
                writer.start()
                time.sleep(0.02)
                raise OSError("the disk is full")
            finally:
                threads.append((writer, before))

    threads = []
    with pytest.raises(UserError, match="out cannot be written: the disk is full"):
        fail()
    ((writer, before),) = threads
    writer.join()
    threading.excepthook = before
    assert not partial_of(tmp_path / "out").exists()


def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        check_file(tmp_path / ("9" * 300))
