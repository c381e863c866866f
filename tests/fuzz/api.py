"""Arguments of `load`, `generate`, `score`, `logits`, `generate_ids`, `save`: right, careless and wrong in any way."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import talking
from hypothesis import strategies as st
from PIL import Image

import victor_jax
from fuzz import models
from fuzz.property import REFUSALS, Surface
from fuzz.strange import scalars, texts, values
from victor_jax.inference.sampling import Sampling
from victor_jax.inference.vlm import VLM

OUT = "{out}"  # stands for a path in the room of the input


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


def mostly(*right: Any) -> st.SearchStrategy[Any]:
    """Of five values one is strange."""
    return st.integers(0, 4).flatmap(lambda one: values if one == 0 else st.sampled_from(right))


def arguments(**of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(of)


# Few lengths, so that few programs are compiled.
questions = st.sampled_from(("What is it?", "What?", "Is the light on?"))
said = st.lists(st.one_of(questions, questions, questions, scalars, texts), min_size=1, max_size=2).filter(
    lambda listed: all(len(text) < 100 for text in listed if isinstance(text, str))
)
prompts = st.one_of(
    st.lists(questions, min_size=1, max_size=2), st.lists(questions, min_size=1, max_size=2), said, values
)
pictures = st.one_of(
    st.none(),
    st.builds(
        lambda size, mode: Image.new(mode, size),
        st.sampled_from(((8, 8), (1, 300), (0, 3), (40, 1))),
        st.sampled_from(("RGB", "LA", "F", "1")),
    ),
    st.sampled_from((b"", 5, "absent.png", "", "\0", "x" * 5000, "/dev/zero", "/", np.zeros((4, 4, 3), np.uint8))),
)
images = st.one_of(
    st.none(),
    st.lists(st.one_of(pictures, st.lists(pictures, max_size=2)), max_size=2),
    values,
)
counts = st.sampled_from((2, 2, 2, 2, 0, -1, 1.5, "2", None, True, 2**40, 10**5000, float("nan"), [2], np.int64(2)))
seeds = mostly(0, 1, 2**32 - 1)
KINDS = (np.int32, np.int64, np.uint8, np.float32, bool, object, "U3")


def _array(shape: tuple[int, ...], kind: Any, fill: Any) -> Any:
    made = np.full(shape, fill if kind is object else abs(fill) % 100 if isinstance(fill, int) else 1)
    return made.astype(kind)


ids = st.one_of(
    st.sampled_from(([[5, 6]], [[1, 7, 9], [4, 5, 6]])),
    st.sampled_from(([[5, 6]], [[1, 7, 9], [4, 5, 6]])),
    st.sampled_from(([[]], [], [[5], [6, 7]], [[5, 448]], [[448] * 9 + [5]], [[5, -1]], [[2**40]], [[10**400]])),
    st.builds(
        _array, st.sampled_from(((1, 2), (2, 3), (2,), (), (1, 0), (0, 3), (1, 1, 1))), st.sampled_from(KINDS), scalars
    ),
    values,
)
pixels = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        _array,
        st.sampled_from(((1, 3, 12, 12), (0, 3, 12, 12), (1, 12, 12, 3), (1,), ())),
        st.sampled_from(KINDS),
        scalars,
    ),
    st.sampled_from((np.full((1, 3, 12, 12), np.nan, np.float32), np.full((1, 3, 12, 12), 1e300))),
    values,
)
masks = st.one_of(
    st.none(),
    st.none(),
    st.sampled_from(([[1, 1]], [[0, 1]], [[0, 0]], [[1, 1, 0], [0, 1, 1]], [[2, 1]], [[float("nan"), 1]])),
    st.builds(_array, st.sampled_from(((1, 2), (2, 3), ())), st.sampled_from(KINDS), scalars),
    values,
)
calls = st.one_of(
    st.builds(
        Call,
        st.just("generate"),
        arguments(
            prompts=prompts,
            images=images,
            max_new_tokens=counts,
            batch_size=counts,
            sampling=mostly(Sampling()),
            stop=mostly((), ["a"], [""], "a", ["\ufffd", "\0"]),
        ),
    ),
    st.builds(
        Call,
        st.just("score"),
        arguments(prompts=prompts, images=images, answers=st.one_of(prompts, said), batch_size=counts),
    ),
    st.builds(Call, st.just("logits"), arguments(input_ids=ids, pixel_values=pixels, attention_mask=masks)),
    st.builds(
        Call,
        st.just("generate_ids"),
        arguments(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=masks,
            max_new_tokens=counts,
            sampling=mostly(Sampling(), Sampling(1.0), Sampling(0.5, 0.9, 3)),
            seeds=mostly(None, [1], [0, 2**32 - 1]),
        ),
    ),
    st.builds(
        Call,
        st.just("load"),
        arguments(
            path=st.one_of(
                st.just("talking"),
                st.just("talking"),
                st.sampled_from(("", "a/b", "x" * 5000, "a\0", ".", "a/b@c", "a b/c")),
                values,
            ),
            compression=mostly(None, "full", "vtw:layer=2"),
            dtype=mostly("float32", "bfloat16"),
            mesh=mostly(None),
            vision=mostly(None),
            projector=mostly(None),
            attention=mostly("auto", "xla"),
            seed=seeds,
        ),
    ),
    st.builds(
        Call,
        st.just("save"),
        arguments(path=mostly(OUT, OUT, "", "\0", "x" * 5000), format=mostly("hf", "llava", "orbax")),
    ),
)


class Api(Surface):
    name, short = "api", 60
    seconds = 20.0  # a program may be compiled
    inputs = calls

    def prepare(self, given, room):
        models.vlm()
        place = {OUT: room / "out" / "saved", "talking": models.folder("talking")}
        return given.name, {
            name: place.get(value, value) if isinstance(value, str) else value
            for name, value in given.arguments.items()
        }

    def attempt(self, prepared, room):
        name, given = prepared
        call: Callable[..., Any] = victor_jax.load if name == "load" else getattr(models.vlm(), name)
        with contextlib.chdir(room):  # a strange path may be one
            return call(**given)

    def compare(self, prepared, result):
        name, given = prepared
        if isinstance(result, REFUSALS):
            return
        match name:
            case "generate":
                assert len(result) == len(given["prompts"])
                assert all(isinstance(text, str) for text in result)
            case "score":
                assert result.shape == (len(given["prompts"]),)
                assert np.isfinite(result).all()
                assert (result <= 0).all()
            case "logits":
                assert len(result) == len(given["input_ids"])
                assert np.isfinite(result).all()
            case "generate_ids":
                assert result.shape == (len(given["input_ids"]), given["max_new_tokens"])
                assert (result >= 0).all()
                assert (result < talking.VOCABULARY).all()
            case "load":
                assert isinstance(result, VLM)
            case "save":
                if Path(given["path"]).is_absolute():
                    again = victor_jax.load(given["path"], dtype="float32")
                    same = jax.tree.map(np.array_equal, again.params, models.vlm().params)
                    assert all(same.values())
