"""One tiny model in every layout that we read, and back: the same tensors, bit by bit, and the same logits."""

import contextlib
import json
import logging
import signal
import warnings
from dataclasses import replace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

pytest.importorskip("torch", reason="the checkpoints are written by Hugging Face")

import layouts
import tiny
import torch
import transformers
from flax.traverse_util import flatten_dict
from layouts import assert_same, drop, hf_logits, part, pick, state, tensors_of
from safetensors.torch import load_file

import victor_jax
from victor_jax import cli
from victor_jax.cli.convert import convert
from victor_jax.models.parameters import Constant, Declared
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.folder import write_shards
from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.tensors import from_array
from victor_jax.weights.write import write_checkpoint

VICTOR = "victor:registers=4,layer=2"
COMPANIONS = {
    "tokenizer.model": b"\x00\x01pieces",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b'{"pad_token": "<pad>"}',
    "preprocessor_config.json": b'{"size": 12}',
    "chat_template.jinja": b"{{ messages }}",
}


@pytest.fixture(scope="module")
def hf(net, tmp_path_factory):
    """As transformers 5.x saves a fresh model."""
    folder = tmp_path_factory.mktemp("hf")
    net.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(COMPANIONS["tokenizer.model"])
    return folder


@pytest.fixture(scope="module")
def truth(hf):
    return tensors_of(hf)


@pytest.fixture(scope="module")
def question(net):
    return tiny.prompt(net.config, [3, 6]), tiny.pixels(net.config, 1)


def logits(folder, ids, pixels, **options):
    return victor_jax.load(folder, dtype="float32", **options).logits(ids, pixels)


def for_original(ids):
    """The original layout has no image token in its vocabulary: it is the next id."""
    return np.where(ids == tiny.IMAGE_TOKEN, 256, ids)


# --- Hugging Face layouts -------------------------------------------------------------------------------------------


def test_a_fresh_save_gives_hugging_faces_logits(hf, net, question):
    np.testing.assert_allclose(logits(hf, *question), hf_logits(net, *question), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("spelling", [name for name in layouts.SPELLINGS if name != "original"])
def test_every_spelling_reads_the_same(spelling, kind, shards, net, truth, tmp_path):
    layouts.write_config(tmp_path, net.config.to_dict())
    write = layouts.write_safetensors if kind == "safetensors" else layouts.write_torch
    write(tmp_path, state(net, spelling), shards)
    assert_same(tensors_of(tmp_path), truth)


def test_shards_of_save_pretrained_read_the_same(net, truth, tmp_path):
    net.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(tensors_of(tmp_path), truth)


def test_a_pickled_memory_dump_gives_hugging_faces_logits(net, question, tmp_path):
    layouts.write_config(tmp_path, net.config.to_dict())
    layouts.write_torch(tmp_path, state(net, "4.52 in memory"), shards=2)
    np.testing.assert_allclose(logits(tmp_path, *question), hf_logits(net, *question), atol=1e-5, rtol=0)


def test_safetensors_win_over_pickled_weights_beside_them(net, truth, tmp_path):
    layouts.hf(tmp_path, net)
    layouts.write_torch(tmp_path, state(layouts.model(seed=1), "4.x on disk"))
    assert_same(tensors_of(tmp_path), truth)


def test_a_tied_head_in_a_pickled_file_is_skipped(tmp_path):
    net = layouts.model("qwen2_tied")
    layouts.write_config(tmp_path, net.config.to_dict())
    layouts.write_torch(tmp_path, state(net, "4.x on disk"))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.skipped == ("language/head",)
    assert "language/head" not in checkpoint.tensors


def test_a_head_of_its_own_is_used_even_where_the_config_ties_it(tmp_path, question):
    """As transformers 5 does; `convert` keeps it."""
    net = layouts.model("qwen2_tied")
    tensors = state(net, "4.x on disk")
    tensors["language_model.lm_head.weight"] = torch.randn(net.lm_head.weight.shape) * 0.2
    layouts.hf(tmp_path / "m", net, tensors)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert not torch.equal(theirs.lm_head.weight, theirs.model.language_model.embed_tokens.weight)
    with pytest.warns(UserWarning, match="ties the head to the embedding, but its weights hold another"):
        ours = victor_jax.load(tmp_path / "m", dtype="float32")
    np.testing.assert_allclose(ours.logits(*question), hf_logits(theirs, *question), atol=1e-5, rtol=0)
    ours.save(tmp_path / "again")
    assert "language/head" in open_checkpoint(tmp_path / "again").tensors


def test_opening_reads_no_weights(hf, tmp_path):
    """A checkpoint larger than memory opens at once: its tensors are read when they are asked for."""
    layouts.write_config(tmp_path, json.loads((hf / "config.json").read_text()))
    held = (hf / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(held)
    checkpoint = open_checkpoint(tmp_path)
    end = int.from_bytes(held[:8], "little") + 8
    (tmp_path / "model.safetensors").write_bytes(held[:end] + bytes(len(held) - end))
    assert all(not tensor.load().any() for tensor in checkpoint.tensors.values())


# --- the original layout --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(net, tmp_path_factory):
    """As the released weights are: the projector inside, no vision tower."""
    tensors = drop(state(net, "original"), "vision_tower")
    return layouts.original(tmp_path_factory.mktemp("released"), net, tensors, shards=2)


def test_the_original_layout_gives_hugging_faces_logits(released, clip, net, question):
    ids, pixels = question
    ours = logits(released, for_original(ids), pixels, vision=clip)
    np.testing.assert_allclose(ours, hf_logits(net, *question), atol=1e-5, rtol=0)


def test_the_original_layout_differs_from_hugging_faces_only_by_its_image_token(released, clip, hf, truth):
    read = open_checkpoint(released, vision=clip)
    assert replace(read.config, image_token=tiny.IMAGE_TOKEN) == open_checkpoint(hf).config
    assert_same({name: tensor.load() for name, tensor in read.tensors.items()}, truth)


def test_a_whole_clip_serves_as_vision_tower(released, net, truth, tmp_path):
    whole = layouts.clip(tmp_path, net, whole=True)
    checkpoint = open_checkpoint(released, vision=whole)
    assert_same({name: tensor.load() for name, tensor in checkpoint.tensors.items()}, truth)
    assert "text_projection.weight" in checkpoint.skipped
    assert "logit_scale" in checkpoint.skipped


@pytest.mark.parametrize("beside", [False, True], ids=["by its path", "beside config.json"])
def test_a_vision_tower_is_found_where_config_names_it(beside, net, truth, tmp_path):
    tower = layouts.clip(tmp_path / "llava" / "tower", net)
    named = "tower" if beside else str(tower)
    tensors = drop(state(net, "original"), "vision_tower")
    layouts.original(tmp_path / "llava", net, tensors, mm_vision_tower=named)
    assert_same(tensors_of(tmp_path / "llava"), truth)


def test_the_numbers_of_a_tower_within_are_inferred(released, clip, net, truth, tmp_path):
    layouts.original(tmp_path, net, shards=3)
    assert open_checkpoint(tmp_path).config == open_checkpoint(released, vision=clip).config
    assert_same(tensors_of(tmp_path), truth)


def test_the_numbers_of_a_tower_within_come_from_the_folder_that_config_names(net, tmp_path):
    net = layouts.model(vision={"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"})
    layouts.clip(tmp_path / "tower", net)
    layouts.original(tmp_path, net, mm_vision_tower="tower")
    vision = open_checkpoint(tmp_path).config.vision
    assert (vision.heads, vision.activation) == (4, "gelu")


@pytest.mark.parametrize("given", [False, True], ids=["beside", "given"])
def test_the_projector_may_lie_in_a_file_of_its_own(given, net, truth, clip, tmp_path):
    tensors = state(net, "original")
    folder = layouts.original(tmp_path / "llava", net, drop(tensors, "vision_tower", "mm_projector"))
    file = tmp_path / "stage1.bin" if given else folder / "mm_projector.bin"
    torch.save(pick(tensors, "mm_projector"), file)
    options = {"projector": file} if given else {}
    assert_same(tensors_of(folder, vision=clip, **options), truth)


def test_a_linear_projector_gives_the_logits_of_a_linear_projector(net, clip, question, tmp_path):
    linear = torch.nn.Linear(128, 64)
    tensors = drop(state(net, "original"), "vision_tower", "mm_projector") | {
        "model.mm_projector.weight": linear.weight.data,
        "model.mm_projector.bias": linear.bias.data,
    }
    layouts.original(tmp_path, net, tensors, mm_projector_type="linear")
    reference = layouts.model()
    reference.model.multi_modal_projector = linear
    ids, pixels = question
    ours = logits(tmp_path, for_original(ids), pixels, vision=clip)
    np.testing.assert_allclose(ours, hf_logits(reference, ids, pixels), atol=1e-5, rtol=0)


def test_old_buffers_are_skipped(net, truth, tmp_path):
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(10)[None],
    }
    layouts.original(tmp_path, net, state(net, "original") | buffers)
    assert_same(tensors_of(tmp_path), truth)
    assert set(open_checkpoint(tmp_path).skipped) == set(buffers)


# --- a language model and a CLIP ------------------------------------------------------------------------------------


def fresh(language_model, clip, seed):
    with pytest.warns(UserWarning, match=f"projector is untrained: drawn from seed {seed}"):
        return tensors_of(language_model, vision=clip, seed=seed)


def test_a_language_model_and_a_clip_are_read_whole(language_model, clip, truth):
    read = fresh(language_model, clip, seed=0)
    assert read.keys() == truth.keys()
    assert_same(part(read, "language", "vision"), part(truth, "language", "vision"))


def test_a_fresh_projector_is_drawn_from_the_seed(language_model, clip):
    first, again, other = (part(fresh(language_model, clip, seed), "projector") for seed in (0, 0, 1))
    assert_same(again, first)
    assert all((other[name] != first[name]).all() for name in first)


def test_a_language_model_takes_a_given_projector(language_model, clip, net, truth, tmp_path):
    torch.save(pick(state(net, "original"), "mm_projector"), tmp_path / "mm_projector.bin")
    assert_same(tensors_of(language_model, vision=clip, projector=tmp_path / "mm_projector.bin"), truth)


def test_a_tied_language_model_has_no_head(clip, tmp_path):
    net = layouts.model("qwen2_tied")
    layouts.language_model(tmp_path, net)
    read = fresh(tmp_path, clip, seed=0)
    assert "language/head" not in read
    embedding = net.model.language_model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(read["language/embedding"], embedding)


# --- round trips ----------------------------------------------------------------------------------------------------


TYPES = (torch.float32, torch.bfloat16, torch.float16)


def in_types(net, types):
    """Its tensors in 4.x names, taking turns with the types."""
    tensors = state(net, "4.x on disk").items()
    return {key: value.to(types[i % len(types)]) for i, (key, value) in enumerate(tensors)}


def round_trip(source, via, folder):
    convert(source, folder / "between", via)
    convert(folder / "between", folder / "back", "hf")
    return folder / "back"


@pytest.mark.parametrize(
    ("via", "types"), [("orbax", TYPES), ("llava", TYPES), *(("llava", (dtype,)) for dtype in TYPES)]
)
def test_a_round_trip_keeps_every_bit_under_4x_names(via, types, net, tmp_path):
    expected = in_types(net, types)
    back = round_trip(layouts.hf(tmp_path / "hf", net, expected), via, tmp_path)
    got = load_file(back / "model.safetensors")
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert got[key].dtype == tensor.dtype, key
        assert torch.equal(got[key].view(torch.uint8), tensor.view(torch.uint8)), key


@pytest.mark.parametrize("dtype", TYPES)
def test_the_written_config_names_the_type_of_the_weights(dtype, net, tmp_path):
    layouts.hf(tmp_path / "hf", net, in_types(net, (dtype,)))
    back = round_trip(tmp_path / "hf", "llava", tmp_path)
    assert load_in_transformers(back)[0].dtype == dtype


MODELS = {
    **{name: (name, {}) for name in tiny.LANGUAGE},
    "class token": ("llama", {"vision_feature_select_strategy": "full"}),
    "joined layers": ("llama", {"vision_feature_layer": [-3, -2, 1]}),
    "last layer": ("llama", {"vision_feature_layer": -1, "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}}),
    "projector without bias": ("llama", {"multimodal_projector_bias": False}),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_came_round_and_gives_the_same_logits(name, question, tmp_path):
    language, changes = MODELS[name]
    net = layouts.model(language, **changes)
    net.save_pretrained(tmp_path / "hf")
    back = round_trip(tmp_path / "hf", "orbax" if name == "joined layers" else "llava", tmp_path)
    assert open_checkpoint(back).config == open_checkpoint(tmp_path / "hf").config
    again, report = load_in_transformers(back)
    assert not any(report.values()), report
    ids, pixels = tiny.prompt(net.config, [3, 6]), tiny.pixels(net.config, 1)
    np.testing.assert_array_equal(hf_logits(again, ids, pixels), hf_logits(net, ids, pixels))


def load_in_transformers(folder):
    net, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    return net.eval(), report


@pytest.mark.parametrize("to", ["hf", "llava"])
def test_companions_come_along(to, net, tmp_path):
    layouts.hf(tmp_path / "hf", net)
    for name, data in COMPANIONS.items():
        (tmp_path / "hf" / name).write_bytes(data)
    convert(tmp_path / "hf", tmp_path / "out", to)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in COMPANIONS} == COMPANIONS


def test_an_original_becomes_a_model_of_transformers_with_room_for_the_image_token(
    released, clip, truth, question, tmp_path
):
    convert(released, tmp_path / "hf", "hf", vision=clip)
    net, report = load_in_transformers(tmp_path / "hf")
    assert not any(report.values()), report
    assert net.config.image_token_id == 256
    for table, name in ((net.get_input_embeddings(), "embedding"), (net.get_output_embeddings(), "head")):
        rows = table.weight.detach().numpy()
        assert rows.shape == (320, 64)
        old = truth[f"language/{name}"]
        np.testing.assert_array_equal(rows[:256], old if name == "embedding" else old.T)
        assert np.isfinite(rows).all()
    ids, pixels = for_original(question[0]), question[1]
    ours = logits(released, ids, pixels, vision=clip)
    np.testing.assert_allclose(ours, hf_logits(net, ids, pixels, image_token=256)[..., :256], atol=1e-5, rtol=0)


def test_a_large_checkpoint_is_written_in_indexed_shards(net, hf, truth, tmp_path):
    """The same writer with a small limit: the full-size one is 5 GB."""
    tensors = {key: tensor for key, tensor in open_checkpoint(hf).tensors.items() if "/kernel" not in key}
    write_shards(tmp_path, tensors, lambda _: None, limit=40_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        for key, tensor in load_file(file).items():
            assert where.pop(key) == file.name
            np.testing.assert_array_equal(tensor.numpy(), truth[key])
    assert not where


# --- Victor checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victor(hf):
    return victor_jax.load(hf, compression=VICTOR, dtype="float32", seed=0)


@pytest.fixture(scope="module")
def victor_logits(victor, question):
    return victor.logits(*question)


@pytest.fixture(scope="module", params=["hf", "llava", "orbax"])
def victor_folder(victor, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("victor") / request.param
    victor.save(folder, format=request.param)
    return folder


def test_a_victor_checkpoint_comes_back_under_its_own_compression(victor_folder, victor, victor_logits, question):
    again = victor_jax.load(victor_folder, dtype="float32")
    assert again.compression == VICTOR
    np.testing.assert_array_equal(again.registers, victor.registers)
    np.testing.assert_array_equal(again.logits(*question), victor_logits)


def test_a_victor_checkpoint_runs_as_plain_llava(victor_folder, net, question):
    plain = victor_jax.load(victor_folder, compression="full", dtype="float32")
    assert plain.registers is None
    np.testing.assert_allclose(plain.logits(*question), hf_logits(net, *question), atol=1e-5, rtol=0)


def test_converting_keeps_the_registers(victor_folder, victor, tmp_path):
    convert(victor_folder, tmp_path / "llava", "llava")
    checkpoint = open_checkpoint(tmp_path / "llava")
    assert checkpoint.compression == VICTOR
    np.testing.assert_array_equal(checkpoint.tensors["compression/registers"].load(), victor.registers)


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
def test_a_methods_own_parameters_come_back_whatever_their_names(to, victor, truth, tmp_path, monkeypatch):
    """No method has any but registers yet: two more are made up."""
    rng = np.random.default_rng(0)
    own = {
        "compression/registers": victor.registers,
        "compression/router/kernel": rng.normal(size=(64, 3)).astype(np.float32),
        "compression/blocks/0/scale": rng.normal(size=64).astype(np.float32),
    }
    declared = {
        name: Declared(jax.ShapeDtypeStruct(array.shape, array.dtype), (None,) * array.ndim, Constant(0.0))
        for name, array in own.items()
    }
    monkeypatch.setattr("victor_jax.weights.checkpoint.own_parameters", lambda config, method: declared)
    tensors = {name: from_array(array) for name, array in (truth | own).items()}
    checkpoint = Checkpoint("memory", tmp_path, victor.config, tensors, VICTOR)
    write_checkpoint(checkpoint, tmp_path / "written", to, lambda _: None)
    assert_same({name: tensor.load() for name, tensor in open_checkpoint(tmp_path / "written").own.items()}, own)


def test_transformers_loads_a_victor_checkpoint_as_plain_llava(victor, net, tmp_path):
    victor.save(tmp_path / "hf")
    plain, report = load_in_transformers(tmp_path / "hf")
    assert not any(report.values()), report
    for key, tensor in net.state_dict().items():
        assert torch.equal(plain.state_dict()[key], tensor), key


def test_saving_keeps_the_tensors_that_no_layer_runs(hf, truth, tmp_path):
    victor_jax.load(hf, dtype="float32").save(tmp_path / "again")
    again = tensors_of(tmp_path / "again")
    assert "vision/layers/3/mlp/up/kernel" in again
    assert "vision/post_norm/scale" in again
    assert_same(again, truth)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    """The command line, which owns its process: what it sets is put back."""
    handler, absl = signal.getsignal(signal.SIGTERM), logging.getLogger("absl")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, handler)
        stack.callback(absl.setLevel, absl.level)
        warnings.simplefilter("always")
        yield lambda arguments: cli.main(["convert", *arguments])


def test_the_command_converts_to_a_folder_that_orbax_alone_restores(command, hf, truth, tmp_path, capsys):
    assert command([str(hf), str(tmp_path / "ours"), "--to=orbax"]) == 0
    assert "hf layout, llama, 114 tensors" in capsys.readouterr().out
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == COMPANIONS["tokenizer.model"]
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "ours" / "params")
    assert_same({name: np.asarray(array) for name, array in flatten_dict(tree, sep="/").items()}, truth)


def test_the_command_prints_warnings_in_one_line(command, language_model, clip, tmp_path, capsys):
    assert command([str(language_model), str(tmp_path / "out"), "--to=llava", f"--vision={clip}", "--seed=3"]) == 0
    assert "warning: the projector is untrained: drawn from seed 3\n" in capsys.readouterr().err


def test_the_command_prints_an_error_in_one_line(command, tmp_path, capsys):
    assert command([str(tmp_path / "nothing"), str(tmp_path / "out"), "--to=hf"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
