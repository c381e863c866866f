"""The rows of training data that a command tries something on: the first that have an image."""

from collections.abc import Callable
from typing import Any, TypeVar

from victor_jax.data.images import BadImage
from victor_jax.data.records import BadRow, Record, parse_record
from victor_jax.data.sources import needs_image_folder, open_source
from victor_jax.errors import UserError

T = TypeVar("T")


def with_image(data: str, images: str | None, limit: int, read: Callable[[Record, Any], T]) -> tuple[dict[int, T], Any]:
    """-> by the row's number, what `read(record, records)` gives; and the records, which open their pictures. An error
    names its row."""
    if needs_image_folder(data) and not images:
        raise UserError(f"the images that {data} names are files of their own: give their folder (--images=DIR)")
    records, found = open_source(data, images), dict[int, T]()
    for number in range(len(records)):
        try:
            record = parse_record(records[number], number)
            if record.images:
                found[number] = read(record, records)
        except (BadRow, BadImage, UserError) as error:
            raise UserError(f"{records.describe(number)}: {getattr(error, 'reason', error)}") from None
        if len(found) == limit:
            break
    return found, records
