"""Reading the next while the last is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """read(item) of each item, in order, one ahead of what was asked for; items are drawn in that thread too.

    An error in an item comes when it is its turn, after all that were read before it.
    """
    left, end = iter(items), object()

    def next_one() -> Read | object:
        item = next(left, end)
        return end if item is end else read(item)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next_one)
        while (ready := coming.result()) is not end:
            coming = reader.submit(next_one)
            yield ready  # type: ignore[misc]
