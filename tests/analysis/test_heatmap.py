"""The picture of what the registers read."""

import numpy as np
import pytest
import talking
from PIL import Image

from victor_jax import cli
from victor_jax.cli import heatmap

PICTURE = np.full((3, 24, 24), 200, np.uint8)


def spotlights(layers, registers, side):
    """Each register looks at one patch alone, of which half of its attention is."""
    attention = np.zeros((layers, registers, side * side), np.float32)
    for number in range(registers):
        attention[:, number, number * 5] = 0.5
    return attention


def panels(figure):
    """Titles and the colours that lie over the picture, in reading order."""
    named = {axes.get_title(loc="left"): axes for axes in figure.axes}
    return {name: axes.images[-1].get_array() for name, axes in named.items() if name}


def test_each_panel_lights_the_patch_that_its_register_looks_at():
    shown = panels(heatmap.heatmap(spotlights(2, 3, 4), PICTURE, "title"))
    assert list(shown) == ["image", "mean of all", "register 1", "register 2", "register 3"]
    for number in range(3):
        opacity = shown[f"register {number + 1}"][..., 3]
        assert np.argwhere(opacity > 0).tolist() == [list(divmod(number * 5, 4))]
    assert (shown["mean of all"][..., 3] > 0).sum() == 3
    assert shown["image"].shape == (24, 24, 3)


def test_one_register_is_not_averaged():
    assert list(panels(heatmap.heatmap(spotlights(1, 1, 4), PICTURE, "title"))) == ["image", "register 1"]


def test_the_numbers_say_how_much_goes_to_the_image():
    figure = heatmap.heatmap(spotlights(2, 2, 4), PICTURE, "title", "a caption with $5 and $6")
    said = [axes.get_title(loc="right") for axes in figure.axes]
    assert said.count("50%") == 3
    assert [text.get_text() for text in figure.texts][-1] == "a caption with $5 and $6"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    talking.picture(0).save(file)
    return file


def test_the_command_draws_a_picture(tmp_path, picture, capsys):
    model = talking.saved(tmp_path / "model", "victor:registers=3,layer=2")
    out = tmp_path / "new" / "map.png"
    asked = ["--prompt=How many cats?", "--dtype=float32"]
    assert cli.main(["heatmap", f"--model={model}", f"--image={picture}", f"--out={out}", *asked]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    drawn = np.asarray(Image.open(out).convert("RGB"))
    assert drawn.shape[1] > drawn.shape[0] > 300
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_mistakes_are_one_line(tmp_path, picture, capsys):
    model = talking.saved(tmp_path / "model", "full")
    for arguments, sentence in [
        ([f"--image={picture}", "--out=map.png"], "full has no registers"),
        ([f"--image={picture}", "--out=map.txt"], "--out=map.txt must end in .png, .pdf or .svg"),
        (["--image=nowhere.png", "--out=map.png"], "the image nowhere.png cannot be used: No such file"),
    ]:
        assert cli.main(["heatmap", f"--model={model}", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {sentence}")
        assert said.count("\n") == 1
