"""The written form of a compression: `full`, `victor:registers=8,layer=3`, `vtw:layer=16,positions=renumber`."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from victor_jax.compression.full import full
from victor_jax.compression.plan import Compression, Positions
from victor_jax.compression.victor import victor
from victor_jax.compression.vtw import vtw
from victor_jax.errors import UserError

METHODS: dict[str, Callable[..., Compression]] = {"full": full, "victor": victor, "vtw": vtw}


def parse(spec: str, depth: int) -> Compression:
    """A written compression, for a language tower of `depth` layers."""
    name, _, written = spec.partition(":")
    if name not in METHODS:
        raise UserError(f"unknown compression {name!r} in {spec!r}{_nearest(name, list(METHODS))}")
    method = METHODS[name]
    fields = dict(list(inspect.signature(method).parameters.items())[1:])  # all but depth
    values: dict[str, int | str] = {}
    for part in filter(None, written.split(",")):
        key, equals, text = part.partition("=")
        if not equals or key not in fields:
            raise UserError(f"unknown field {part!r} in compression {spec!r}{_nearest(key, list(fields))}")
        if key in values:
            raise UserError(f"field {key!r} stands twice in compression {spec!r}: write it once")
        values[key] = _value(spec, key, text)
    missing = [k for k, f in fields.items() if f.default is inspect.Parameter.empty and k not in values]
    if missing:
        raise UserError(f"compression {spec!r} needs {' and '.join(missing)}: write {name}:{missing[0]}=…")
    named = [f"{k}={values[k]}" for k, f in fields.items() if k in values and values[k] != f.default]
    return replace(method(depth, **values), spec=":".join(filter(None, [name, ",".join(named)])))


def _value(spec: str, key: str, text: str) -> int | str:
    if key == "positions":
        if text not in get_args(Positions):
            raise UserError(f"positions={text} in compression {spec!r} must be keep or renumber")
        return text
    if not text.isascii() or not text.isdigit() or (key == "registers" and int(text) == 0):
        raise UserError(f"{key}={text} in compression {spec!r} must be a {'positive ' * (key == 'registers')}"
                        "whole number")  # fmt: skip
    return int(text)


def _nearest(name: str, known: list[str]) -> str:
    if not known:
        return ": it takes no fields"
    close = difflib.get_close_matches(name, known, n=1)
    return (f": did you mean {close[0]!r}?" if close else ":") + f" known are {', '.join(known)}"
