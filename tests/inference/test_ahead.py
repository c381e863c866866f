"""The next item is read while the last one is worked on; order and errors are those of a plain loop."""

from threading import Event

import pytest

from victor_jax.inference.ahead import read_ahead


def test_the_next_is_read_meanwhile_and_no_further():
    began = [Event() for _ in range(4)]

    def read(item):
        began[item].set()
        return 10 * item

    reader = read_ahead(read, range(4))
    assert next(reader) == 0
    assert began[1].wait(timeout=10), "it waits until it is asked for"
    assert not began[2].wait(timeout=0.2), "it reads more than one ahead, which costs memory"
    assert list(reader) == [10, 20, 30]
    assert list(read_ahead(read, [])) == []


def test_an_error_comes_when_it_is_its_turn():
    def read(item):
        return 1 / item

    reader = read_ahead(read, [1, 2, 0, 4])
    assert [next(reader), next(reader)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(reader)
