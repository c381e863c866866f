"""What lmms-eval's tasks and flags say arrives as our settings, or is one sentence."""

import pytest

from victor_jax.errors import UserError
from victor_jax.harness import asking
from victor_jax.harness.asking import Decoding
from victor_jax.inference.sampling import Sampling


def test_gen_kwargs_of_lmms_evals_own_tasks():
    pope = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert asking.decoding(pope | {"until": ["\n\n"]}) == Decoding(128)  # its default, not a stop string
    assert asking.decoding({"until": None, "do_sample": False}) == Decoding(1024)
    assert asking.decoding({"until": "ASSISTANT:", "max_new_tokens": 8}) == Decoding(8, stop=("ASSISTANT:",))
    drawn = {"temperature": 0.7, "top_p": None, "top_k": 20, "do_sample": True}
    assert asking.decoding(drawn) == Decoding(1024, Sampling(0.7, 1.0, 20))
    assert asking.decoding({"temperature": 0.7, "do_sample": False}) == Decoding()
    assert asking.not_heeded(pope) == {}
    assert asking.not_heeded({"num_beams": 5, "image_aspect_ratio": "original", "repetition_penalty": 1.0}) == {
        "num_beams": 5,
        "image_aspect_ratio": "original",
    }


def test_pictures_stand_where_llavas_class_puts_them():
    assert asking.with_places("Why?", 0) == "Why?"
    assert asking.with_places("Why?", 2) == "<image> <image>\nWhy?"
    assert asking.with_places("Is <image> red?", 1) == "Is <image> red?"


def message(*content):
    return [{"role": "user", "content": list(content)}]


def text(words):
    return {"type": "text", "text": words}


def image(name):
    return {"type": "image", "url": name}


def test_messages_say_the_same_as_the_simple_tasks_and_keep_pictures_in_their_places():
    assert asking.from_messages(message(image("a"), image("b"), text("Why?")), "t") == ("Why?", ["a", "b"])
    assert asking.from_messages(message(image("a"), text("Is <image> red?")), "t") == ("Is <image> red?", ["a"])
    assert asking.from_messages([{"role": "user", "content": "Why?"}], "t") == ("Why?", [])
    between = message(text("From "), image("a"), text(" to "), image("b"), text("?"))
    assert asking.from_messages(between, "t") == ("From <image> to <image>?", ["a", "b"])


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "system", "content": "Be brief."}, *message(text("Why?"))], "the task mix sends system, user"),
        (message({"type": "video", "url": "a.mp4"}, text("Why?")), "the task mix sends video"),
    ],
)
def test_messages_that_cannot_be_answered_are_named(messages, told):
    with pytest.raises(UserError, match=told):
        asking.from_messages(messages, "mix")


def test_a_batch_size_is_a_number_its_text_or_auto():
    assert asking.batch_size("8", None) == asking.batch_size(8, 4) == 8
    assert (asking.batch_size("auto", None), asking.batch_size("auto:2", 32)) == (16, 32)
    for wrong in ("0", "many"):
        with pytest.raises(UserError, match="batch_size"):
            asking.batch_size(wrong, None)


def test_a_device_other_than_jaxs_is_an_error():
    for device in (None, "cuda", "cuda:0", "gpu"):
        asking.check_device(device, "gpu")
    with pytest.raises(UserError, match="device=cuda:1, but jax runs on cpu"):
        asking.check_device("cuda:1", "cpu")


def test_a_compression_keeps_its_commas_in_quotes_and_what_falls_out_of_them_is_explained():
    assert asking.unquoted("'victor:registers=8,layer=3'") == "victor:registers=8,layer=3"
    assert asking.unquoted(None) is None
    with pytest.raises(UserError, match=r"layer=3: known are pretrained, compression; .* in quotes"):
        asking.check_known({"layer": 3}, ("pretrained", "compression"))
