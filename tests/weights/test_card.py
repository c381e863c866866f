"""The README that goes with a compression into other people's layouts, and the one that came with the checkpoint."""

import pytest
import talking

from victor_jax.weights.read import open_checkpoint
from victor_jax.weights.write import write_checkpoint

METHOD = "victor:registers=2,layer=1"
THEIRS = "---\nlicense: other\n---\n# Grüße from the base model\n"


@pytest.fixture
def trained(tmp_path):
    return talking.saved(tmp_path / "trained", METHOD)


def written(source, folder, to):
    write_checkpoint(open_checkpoint(source), folder, to)
    return folder


@pytest.mark.parametrize(("to", "program"), [("hf", "transformers"), ("llava", "LLaVA's own code")])
def test_it_says_what_runs_the_compression_and_what_runs_a_full_llava(to, program, trained, tmp_path):
    text = (written(trained, tmp_path / "mine", to) / "README.md").read_text()
    for part in (METHOD, "(2 registers)", 'victor_jax.load("mine")', "`victor.json` and `victor.safetensors`"):
        assert part in text
    assert f"**{program} does not know the compression.**" in text
    assert "as a full LLaVA: every visual\ntoken through every layer and without its 2 registers." in text


def test_without_parameters_it_names_no_file_of_them(tmp_path):
    text = (
        written(talking.saved(tmp_path / "trained", "vtw:layer=2"), tmp_path / "mine", "hf") / "README.md"
    ).read_text()
    assert "without parameters of its own" in text
    assert "victor.safetensors" not in text


def test_what_everything_reads_alike_needs_none(trained, tmp_path):
    assert not (written(trained, tmp_path / "ours", "orbax") / "README.md").exists()
    full = talking.saved(tmp_path / "full")
    assert not (written(full, tmp_path / "theirs", "hf") / "README.md").exists()


def test_the_readme_that_came_with_it_is_kept_beside_through_every_format(trained, tmp_path):
    """Ours is written anew each time, and is never taken for the one that came."""
    (trained / "README.md").write_text(THEIRS, encoding="utf-8")
    folder = trained
    for number, to in enumerate(("hf", "orbax", "llava", "hf")):
        folder = written(folder, tmp_path / f"{to}-{number}", to)
        assert (folder / "README.base.md").read_text(encoding="utf-8") == THEIRS
        if to == "orbax":
            assert not (folder / "README.md").exists()
        else:
            text = (folder / "README.md").read_text()
            assert f'victor_jax.load("{folder.name}")' in text
            assert "[README.base.md](README.base.md) is that of the model it was made from" in text


def test_one_that_cannot_be_read_as_text_is_kept_too(trained, tmp_path):
    (trained / "README.md").write_bytes(b"\xff\xfe caf\xe9")
    assert (written(trained, tmp_path / "mine", "hf") / "README.base.md").read_bytes() == b"\xff\xfe caf\xe9"
