"""Models by the name of a Hugging Face repository, from a cache laid out as huggingface_hub lays out its own.

Nothing here has a network: HF_HUB_OFFLINE is set for all tests. Uploading is recorded by a stand-in for HfApi.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import talking
import yaml
from huggingface_hub import constants

import victor_jax
from victor_jax.weights import card, hub
from victor_jax.weights.read import open_checkpoint

V1 = Path(__file__).parents[1] / "fixtures" / "v1"
COMMITS = {"main": "1" * 40, "v2": "2" * 40}
METHOD = "victor:registers=2,layer=1"


def keep(cache, name, source, revision="main"):
    """The folder `source` as a model of the cache."""
    model = cache / f"models--{name.replace('/', '--')}"
    commit = COMMITS[revision]
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / revision).write_text(commit)
    blobs, snapshot = model / "blobs" / commit, model / "snapshots" / commit
    shutil.copytree(source, blobs)
    for file in (file for file in blobs.rglob("*") if file.is_file()):  # a snapshot is made of links
        link = snapshot / file.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("format", ["hf", "llava", "orbax"])
def test_a_model_loads_by_its_name_on_the_hub(format, cache):
    keep(cache, "org/tiny-victor.1", V1 / format)
    expected = dict(np.load(V1 / "logits.npz"))
    vlm = victor_jax.load("org/tiny-victor.1", dtype="float32")
    assert vlm.compression == METHOD
    logits = vlm.logits(expected["input_ids"], expected["pixel_values"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=0)


def test_a_revision_is_what_follows_the_at_sign(cache):
    keep(cache, "org/tiny", V1 / "hf")
    keep(cache, "org/tiny", V1 / "llava", revision="v2")
    assert open_checkpoint("org/tiny").format == "hf"
    assert open_checkpoint("org/tiny@v2").format == "llava"
    assert open_checkpoint(f"org/tiny@{COMMITS['v2']}").format == "llava"


def test_a_folder_wins_over_a_repository_of_its_name(cache, tmp_path):
    keep(cache, "org/tiny", V1 / "hf")
    shutil.copytree(V1 / "orbax", tmp_path / "org" / "tiny")
    assert open_checkpoint("org/tiny").format == "orbax"


def test_a_vision_tower_comes_by_its_name_too(cache, tmp_path):
    layouts = pytest.importorskip("layouts", reason="CLIP is written by Hugging Face")
    net = layouts.model()
    keep(cache, "openai/clip-tiny", layouts.clip(tmp_path / "clip", net))
    released = layouts.drop(layouts.state(net, "original"), "vision_tower")
    folder = layouts.original(tmp_path / "released", net, released)
    given = open_checkpoint(folder, vision="openai/clip-tiny")
    assert given.config.vision.width == net.config.vision_config.hidden_size
    named = layouts.original(tmp_path / "named", net, released, mm_vision_tower="openai/clip-tiny")
    layouts.assert_same(layouts.tensors_of(named), {name: tensor.load() for name, tensor in given.tensors.items()})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "org/absent",
            r"^org/absent is no folder here, and on the Hugging Face Hub it cannot be reached",
        ),
        ("org/tiny@v9", r"^org/tiny@v9 is no folder here, .* the cache .* does not hold all its files"),
        ("or--g/tiny", r"^or--g/tiny is no folder here, and on the Hugging Face Hub .*--"),
        ("./absent", r"absent/config.json does not exist"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(name, reason, cache):
    keep(cache, "org/tiny", V1 / "hf")
    with pytest.raises(victor_jax.UserError, match=reason) as caught:
        victor_jax.load(name)
    assert "\n" not in str(caught.value)


def downloads(monkeypatch, tmp_path, files):
    """A stand-in for the download alone: the patterns that are asked for decide what arrives."""
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append(repository)
        for file in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / "got" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "got" / file).touch()
        return str(tmp_path / "got")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    folder = hub.local_folder("org/name")
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


NEEDED = ["config.json", "merges.txt", "tokenizer.json", "tokenizer.model"]


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json", "victor.safetensors"],
         ["pytorch_model.bin", "consolidated.safetensors", "model.onnx", "README.md", "flax_model.msgpack"]),
        (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "mm_projector.bin"],
         ["tf_model.h5", "optimizer.bin", "trainer_state.txt"]),
        (["params/manifest.ocdbt", "params/d/abc"], ["pytorch_model.bin", "notes.md"]),
    ],
    ids=["safetensors", "pickled", "orbax"],
)  # fmt: skip
def test_only_what_is_read_is_fetched(weights, others, monkeypatch, tmp_path):
    assert downloads(monkeypatch, tmp_path, [*NEEDED, *weights, *others]) == sorted([*NEEDED, *weights])


def test_the_commands_take_the_name_and_the_variables_of_the_hub(tmp_path):
    snapshot = keep(tmp_path / "cache", "org/tiny", V1 / "hf")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "victor_jax", "convert", "org/tiny", str(tmp_path / "out"), "--to=orbax"]
    root = Path(victor_jax.__file__).parents[1]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{snapshot}: hf layout" in done.stdout
    assert open_checkpoint(tmp_path / "out").compression == METHOD


# --- push -----------------------------------------------------------------------------------------------------------


class RecordingApi:
    """Takes the place of HfApi: keeps what would be uploaded, file by file."""

    def __init__(self, kept):
        self.kept, self.calls = kept, []

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id))
        shutil.copytree(folder_path, self.kept)


@pytest.fixture
def api(tmp_path, monkeypatch):
    recording = RecordingApi(tmp_path / "uploaded")
    monkeypatch.setattr(hub, "HfApi", lambda: recording)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return recording


def test_a_pushed_model_has_a_card_and_loads_again(api, tmp_path):
    checkpoint = open_checkpoint(talking.saved(tmp_path / "trained", METHOD))
    assert hub.push_checkpoint(checkpoint, "org/mine") == "https://huggingface.co/org/mine"
    assert api.calls == [("create", "org/mine", True, True), ("upload", "org/mine")]
    again = open_checkpoint(api.kept)
    assert (again.format, again.compression, again.registers) == ("hf", METHOD, 2)
    for name in ("compression/registers", "projector/linear_1/kernel"):
        np.testing.assert_array_equal(again.tensors[name].load(), checkpoint.tensors[name].load())
    assert (api.kept / "tokenizer_config.json").exists()
    _, front, body = (api.kept / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "victor_jax",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava", "victor"],
    }
    for part in (METHOD, "2 registers", 'victor_jax.load("org/mine")', "transformers", "full LLaVA"):
        assert part in body


def test_the_card_names_the_model_on_the_hub_that_it_came_from(api, cache):
    keep(cache, "org-labs/tiny-base", V1 / "hf")
    checkpoint = open_checkpoint("org-labs/tiny-base")
    front = card.model_card(checkpoint, "hf", "org/mine").split("---\n")[1]
    assert yaml.safe_load(front)["base_model"] == "org-labs/tiny-base"


@pytest.mark.parametrize(
    ("name", "token", "offline", "reason"),
    [
        ("mine", "hf_token", False, r"'mine' does not name a model on the Hugging Face Hub: write org/name"),
        ("org/mine", None, False, r"org/mine cannot be written without a token: log in with `hf auth login`"),
        ("org/mine", "hf_token", True, r"org/mine cannot be written: HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_be_pushed_says_so_before_anything_is_written(name, token, offline, reason, api, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(victor_jax.UserError, match=reason):
        hub.push_checkpoint(open_checkpoint(V1 / "hf"), name)
    assert not api.calls


def test_a_refusal_of_the_hub_is_one_sentence(api, monkeypatch):
    def refuse(*_, **__):
        raise huggingface_hub.errors.HTTPError("403 Forbidden\nfor this token")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(victor_jax.UserError, match=r"^org/mine cannot be written: 403 Forbidden$"):
        hub.push_checkpoint(open_checkpoint(V1 / "hf"), "org/mine")
