"""Which devices answer: a copy of the weights on each where there is room, else parts of them; rows over the copies."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import talking

import victor_jax
from victor_jax.compression.spec import parse
from victor_jax.errors import UserError
from victor_jax.inference import devices, programs
from victor_jax.inference.devices import axes_for, check_mesh, mesh_for, place_rows
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule
from victor_jax.sharding.mesh import make_mesh

GIB = 2**30


def module(size: str, dtype: str = "bfloat16") -> VLMModule:
    return VLMModule(SIZES[size], parse("victor:registers=8,layer=3", SIZES[size]), jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("size", "count", "memory", "expected"),
    [
        ("7b", 8, 139, (8, 1)),  # 13 GiB of weights
        ("7b", 8, 31, (8, 1)),
        ("7b", 8, 15.75, (4, 2)),
        ("7b", 4, 15.75, (2, 2)),
        ("13b", 8, 15.75, (2, 4)),
        ("13b", 2, 15.75, (1, 2)),  # more than half of each device, but there are no more devices
    ],
)
def test_a_model_is_copied_where_there_is_room_and_else_cut(monkeypatch, size, count, memory, expected) -> None:
    device = SimpleNamespace(platform="tpu", memory_stats=lambda: {"bytes_limit": int(memory * GIB)})
    monkeypatch.setattr(devices, "make_mesh", lambda data, tensor, devices: (data, tensor))
    assert mesh_for(module(size), [device] * count) == expected


def test_devices_that_do_not_tell_their_memory_hold_a_copy_each(monkeypatch) -> None:
    monkeypatch.setattr(devices, "make_mesh", lambda data, tensor, devices: (data, tensor))
    assert mesh_for(module("7b"), [SimpleNamespace(platform="gpu", memory_stats=lambda: None)] * 4) == (4, 1)


def test_a_single_device_and_cpu_need_no_mesh() -> None:
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80 * GIB})
    assert mesh_for(module("7b"), [device]) is None
    assert mesh_for(module("7b"), jax.devices()) is None


def test_the_tensor_axis_divides_what_it_cuts() -> None:
    assert axes_for(12, 100, 60, {8, 12}) == (3, 4)
    assert axes_for(6, 100, 90, {8, 32}) == (3, 2)


def test_a_model_that_fits_nowhere_is_one_error() -> None:
    with pytest.raises(UserError, match=r"take 100.0 GiB, and 8 devices of 20.0 GiB can hold at most 4 parts of them"):
        axes_for(8, 100 * GIB, 20 * GIB, {4, 8})
    with pytest.raises(UserError, match=r"1 device of 20.0 GiB can hold at most 1 parts"):
        axes_for(1, 100 * GIB, 20 * GIB, {4, 8})


def test_fsdp_is_refused_with_what_to_use_instead() -> None:
    check_mesh(make_mesh(data=4, tensor=2))
    with pytest.raises(UserError, match=r"fsdp=8 would gather all weights for every token: .* data .* or to tensor"):
        check_mesh(make_mesh(fsdp=8))


@pytest.mark.parametrize(("rows", "filled"), [(8, 8), (3, 4), (1, 4)])
def test_copies_of_the_last_row_fill_a_batch_up(rows: int, filled: int) -> None:
    batch = {"ids": np.arange(rows * 5).reshape(rows, 5), "ends": np.arange(rows)}
    placed = place_rows(batch, make_mesh(data=4, tensor=2))
    for name, array in batch.items():
        assert placed[name].sharding.shard_shape(placed[name].shape)[0] == filled // 4
        np.testing.assert_array_equal(placed[name], array[np.minimum(np.arange(filled), rows - 1)])


def test_batches_that_the_rows_of_a_mesh_do_not_divide_are_answered_and_scored_as_on_one_device(tmp_path) -> None:
    """Five prompts in batches of three: four places for rows on the mesh."""
    folder = talking.saved(tmp_path / "model")
    prompts = ["What is it?", "How many cats are in the picture?", "Which is red?", "Is it?", "Is the light on?"]
    images = [talking.picture(0), None, talking.picture(1), None, None]
    answers = ["a cat", "two", "the left one", "no", "yes"]
    alone = victor_jax.load(folder, dtype="float32")
    vlm = victor_jax.load(folder, dtype="float32", mesh=make_mesh(data=4, tensor=2))
    drawn = {"batch_size": 3, "sampling": victor_jax.Sampling(1.0, top_p=0.9), "stop": ["e"]}
    assert vlm.generate(prompts, images, 4, **drawn) == alone.generate(prompts, images, 4, **drawn)
    scores = alone.score(prompts, images, answers, batch_size=3)
    np.testing.assert_allclose(vlm.score(prompts, images, answers, batch_size=3), scores, rtol=1e-5)


def test_devices_with_a_copy_each_exchange_nothing_but_whether_all_rows_have_ended(tmp_path) -> None:
    vlm = victor_jax.load(talking.saved(tmp_path / "model"), dtype="float32", mesh=make_mesh(data=8))
    prepared = vlm.prepare(vlm.prompter.ask(["What is it?"] * 8, [talking.picture(0)] * 8))

    def exchanged(compiled: jax.stages.Compiled) -> list[str]:
        return re.findall(r"= (\S+ (?:all-\w+|reduce-scatter|collective-\w+))\(", compiled.as_text())

    compiled = vlm.call(lambda *args, **static: programs.prefill.lower(*args, **static).compile(), *prepared, room=4)
    assert exchanged(compiled) == []
    logits, caches = vlm.call(programs.prefill, *prepared, room=4)
    static = {"max_new_tokens": 4, "end_tokens": (2,), "pad_token": 0}
    lowered = programs.decode.lower(vlm._tree, caches, logits, None, None, module=vlm.module, **static)
    assert exchanged(lowered.compile()) == ["pred[] all-reduce"]
