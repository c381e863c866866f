"""Careless arguments of the API: one sentence that names the argument, before anything is computed."""

import dataclasses

import numpy as np
import pytest
import talking
from PIL import Image

import victor_jax
from victor_jax.errors import UserError
from victor_jax.weights.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return talking.saved(tmp_path_factory.mktemp("talk") / "m", "victor:registers=3,layer=2")


@pytest.fixture(scope="module")
def vlm(folder):
    return victor_jax.load(folder, dtype="float32")


def closed():
    picture = talking.picture(0)
    picture.close()
    return picture


@pytest.mark.parametrize(
    ("prompts", "images", "words"),
    [
        (None, None, "prompts must be a list of texts"),
        ({"a": 1}, None, "prompts must be a list of texts"),
        ((text for text in ["What?"]), None, "prompts must be a list of texts"),
        ([None], None, "entry 0 of prompts is a NoneType: expected a text"),
        (["What?", b"What?"], None, "entry 1 of prompts is a bytes: expected a text"),
        (["\ud800"], None, "entry 0 of prompts holds half a character"),
        (["What?"], 5, "1 prompts want 1 entries in images"),
        (["What?"], [5], "entry 0 of images holds a int: expected a picture"),
        (["What?"], [np.zeros((8, 8, 3), np.uint8)], "entry 0 of images holds a ndarray: expected a picture"),
        (["What?"], [[talking.picture(0), None]], "entry 0 of images holds a NoneType: expected a picture"),
        (["What?"], [Image.new("RGB", (0, 0))], "a picture of 0 x 0 pixels shows nothing"),
        (["What?"], [closed()], "a picture cannot be read: Operation on closed image"),
    ],
)
def test_prompts_and_images(vlm, prompts, images, words):
    with pytest.raises(UserError, match=words):
        vlm.generate(prompts, images, max_new_tokens=2)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True, 2**40, float("nan")])
@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_counts(vlm, name, value):
    with pytest.raises(UserError, match=rf"{name}={value!r} must be a whole number from 1 to 1,000,000"):
        vlm.generate(["What?"], **{name: value})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling": 1.0}, "sampling=1.0 must be a Sampling"),
        ({"seeds": [2**70]}, r"seeds\[0\]=1180591620717411303424 must be a whole number from 0"),
        ({"seeds": [1, 2]}, "1 prompts want 1 seeds"),
        ({"seeds": 1}, "1 prompts want 1 seeds"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids has rows of several lengths"),
        ({"input_ids": [[5, 999999]]}, "row 0 of input_ids has the token 999999"),
    ],
)
def test_arrays_and_chance(vlm, arguments, words):
    with pytest.raises(UserError, match=words):
        vlm.generate_ids(**{"input_ids": np.array([[5, 6]]), "max_new_tokens": 2} | arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": float("nan")}, "temperature=nan must be a number from 0$"),
        ({"temperature": float("inf")}, "temperature=inf must be a number from 0$"),
        ({"temperature": "x"}, "temperature='x' must be a number from 0$"),
        ({"top_p": 1.1}, "top_p=1.1 must be a number from 0 to 1"),
        ({"top_k": -1}, "top_k=-1 must be a whole number from 0"),
    ],
)
def test_sampling(arguments, words):
    with pytest.raises(UserError, match=words):
        victor_jax.Sampling(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"compression": 5}, "compression=5 must be a text"),
        ({"compression": "victor:registers=99999999999,layer=2"}, "must be a whole number from 1 to 10,000"),
        ({"mesh": "x"}, "mesh='x' must be a mesh of jax"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"path": None}, "path=None must be the path of a folder"),
    ],
)
def test_load(folder, arguments, words):
    with pytest.raises(UserError, match=words):
        victor_jax.load(**{"path": folder} | arguments)


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "language/layers/2/norm1/scale hold NaN"), (3e38, "they overflow")]
)
def test_weights_that_give_no_numbers(vlm, value, why):
    path = "language/stages_1_0/norm1/scale"
    changed = {path: vlm.params[path].at[0, 0].set(value), "language/head": vlm.params["language/head"] * value}
    given = dataclasses.replace(vlm, params=vlm.params | (changed if value == 3e38 else {path: changed[path]}))
    for ask in (given.logits, given.generate_ids):
        with pytest.raises(UserError, match=f"gives logits that are not finite: {why}"):
            ask(np.array([[5, 6]]), **({"max_new_tokens": 2} if ask == given.generate_ids else {}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000])
def test_a_damaged_tokenizer(vlm, tmp_path, name, text):
    for file in vlm.folder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="no tokenizer could be read from"):
        open_tokenizer(tmp_path)
