"""The written form of a compression: `full`, `victor:registers=8,layer=3`, `vtw:layer=16,positions=renumber`."""

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from victor_jax.compression.divprune import divprune
from victor_jax.compression.dyvte import dyvte
from victor_jax.compression.elastic import elastic
from victor_jax.compression.fastv import fastv
from victor_jax.compression.fopru import fopru
from victor_jax.compression.hidrop import hidrop
from victor_jax.compression.llavamini import llavamini
from victor_jax.compression.m3 import m3
from victor_jax.compression.mod import mod
from victor_jax.compression.mqt import mqt
from victor_jax.compression.perceiver import perceiver
from victor_jax.compression.places import last, random
from victor_jax.compression.plan import Method, Percent, Positive, Token
from victor_jax.compression.pool import pool
from victor_jax.compression.prumerge import prumerge, prumergeplus
from victor_jax.compression.pyramiddrop import pyramiddrop
from victor_jax.compression.qwenvl import qwenvl
from victor_jax.compression.sparsevlm import sparsevlm
from victor_jax.compression.tokenpacker import tokenpacker
from victor_jax.compression.victor_pooled import victor_pooled
from victor_jax.compression.visionzip import visionzip
from victor_jax.compression.visor import visor
from victor_jax.compression.vtccls import vtccls
from victor_jax.compression.windows import windows
from victor_jax.compression.withdrawal import full, victor, vtw
from victor_jax.errors import UserError
from victor_jax.limits import check_kind
from victor_jax.models.config import VLMConfig

MOST = 10_000  # of registers, layers, tokens: what no image and no tower has
RANGES = {Positive: (1, MOST), Percent: (1, 100), Token: (0, 10_000_000)}
# A method is a function of the architecture; its other parameters are the fields of its written form.
METHODS: dict[str, Callable[..., Method]] = {
    "full": full,
    "victor": victor,
    "victor-pooled": victor_pooled,
    "elastic": elastic,
    "vtw": vtw,
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
    "sparsevlm": sparsevlm,
    "hidrop": hidrop,
    "mod": mod,
    "visor": visor,
    "dyvte": dyvte,
    "windows": windows,
    "last": last,
    "random": random,
    "pool": pool,
    "perceiver": perceiver,
    "qwenvl": qwenvl,
    "mqt": mqt,
    "tokenpacker": tokenpacker,
    "llavamini": llavamini,
    "vtccls": vtccls,
    "fopru": fopru,
    "visionzip": visionzip,
    "prumerge": prumerge,
    "prumergeplus": prumergeplus,
    "divprune": divprune,
    "m3": m3,
}


def parse(spec: str, config: VLMConfig) -> Method:
    """A written compression, for a model of this architecture: a method, or two joined by a plus, of which one works
    before the language tower and the other in it."""
    check_kind("compression", spec, str, "a text such as victor:registers=8,layer=3")
    methods = [_one(written, config) for written in spec.split("+")]
    if len(methods) == 1:
        return methods[0]
    before, within = (
        [method for method in methods if bool(method.compressor) is compresses] for compresses in (True, False)
    )
    if len(before) != 1 or len(within) != 1:
        where, clashing = ("before", before) if len(before) > 1 else ("in", within)
        raise UserError(
            f"compression {spec!r} does not combine: {' and '.join(method.spec for method in clashing)} work {where} "
            "the language tower; join one that works before it and one that works in it"
        )
    if before[0].own or before[0].registers:
        raise UserError(f"compression {spec!r} does not combine: {before[0].spec} already works in the language tower")
    if within[0].whole_images:
        raise UserError(
            f"compression {spec!r} does not combine: {within[0].spec} chooses among all tokens that the vision tower "
            "gives of an image"
        )
    draws = before[0].draws or within[0].draws
    if before[0].draws and within[0].registers:
        raise UserError(
            f"compression {spec!r} does not combine: {before[0].spec} draws a number of visual tokens for each row, "
            "which goes with no registers"
        )
    written = f"{before[0].spec}+{within[0].spec}"
    fork = within[0].fork and within[0].fork.behind(before[0].spec)
    return replace(within[0], compressor=before[0].compressor, draws=draws, fork=fork, spec=written)


def with_cut(spec: str, layer: int) -> str:
    """The written compression with its layer changed to this one; where it has none, VTW's cut is added there."""
    parts = spec.split("+")
    for number, part in enumerate(parts):
        name, _, written = part.partition(":")
        if "layer" in inspect.signature(METHODS.get(name, full)).parameters:
            others = [field for field in written.split(",") if field and not field.startswith("layer=")]
            parts[number] = f"{name}:{','.join([*others, f'layer={layer}'])}"
            return "+".join(parts)
    cut = f"vtw:layer={layer}"
    return cut if spec == "full" else f"{spec}+{cut}"


@functools.lru_cache(maxsize=64)  # one object for one text: what is cached by method is found again
def _one(spec: str, config: VLMConfig) -> Method:
    name, _, written = spec.partition(":")
    if name not in METHODS:
        raise UserError(f"unknown compression {name!r} in {spec!r}{_nearest(name, list(METHODS))}")
    method = METHODS[name]
    fields = dict(list(inspect.signature(method).parameters.items())[1:])  # all but the config
    hints = get_type_hints(method)
    values: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        key, equals, text = part.partition("=")
        is_word = hints.get(key) is bool  # a field that is written by its name alone
        if key not in fields or is_word == bool(equals):
            raise UserError(f"unknown field {part!r} in compression {spec!r}{_nearest(key, list(fields))}")
        if key in values:
            raise UserError(f"field {key!r} is given twice in compression {spec!r}: write it once")
        values[key] = is_word or _value(text, hints[key], f"{key}={text} in compression {spec!r}")
    missing = [k for k, f in fields.items() if f.default is inspect.Parameter.empty and k not in values]
    if missing:
        raise UserError(f"compression {spec!r} needs {' and '.join(missing)}: write {name}:{missing[0]}=…")
    named = [_written(k, values[k]) for k, f in fields.items() if k in values and values[k] != f.default]
    return replace(method(config, **values), spec=":".join(filter(None, [name, ",".join(named)])))


def _written(key: str, value: Any) -> str:
    if value is True:
        return key
    return f"{key}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}"


def _value(text: str, kind: Any, where: str) -> Any:
    if NoneType in get_args(kind):  # of a field that may be left out
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return tuple(_value(part, get_args(kind)[0], where) for part in text.split("-"))
    if choices := get_args(kind):
        if text not in choices:
            raise UserError(f"{where} must be {' or '.join(choices)}")
        return text
    least, most = RANGES.get(kind, (0, MOST))
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise UserError(f"{where} must be a whole number from {least} to {most:,}")
    return int(text)


def _nearest(name: str, known: list[str]) -> str:
    if not known:
        return ": it takes no fields"
    close = difflib.get_close_matches(name, known, n=1)
    return (f": did you mean {close[0]!r}?" if close else ":") + f" known are {', '.join(known)}"
