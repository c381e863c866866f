"""victor-jax heatmap --model=DIR --image=FILE --out=PNG [--prompt=…]: what each register read.

A panel for each register: its attention over the patches of the image in the layers that still see it, drawn over
the image as the model sees it. With a prompt the model's answer stands below.
"""

import argparse
import math
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from victor_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

COLUMNS = 5
PANEL, GAP, NAME = 1.9, 0.14, 0.26  # inches: a panel, between two, and what is written over one
LEFT, BAR, HEAD = 0.15, 0.85, 0.72  # inches: the left margin, the colour bar with its own, the title
COLOURS, OPAQUE, DIMMED = "inferno", 0.72, 0.8
INK, FAINT = "#1f2430", "#6b7280"


def heatmap(
    attention: np.ndarray,  # float32 [layers, M, patches]
    picture: np.ndarray,  # uint8 [3, size, size]
    title: str,
    caption: str = "",
) -> "Figure":
    """The picture, the mean of all registers, then one panel for each register, averaged over the layers.

    Colours say how many times more a patch is attended to than if the attention were spread evenly over the image;
    the number above a panel is the share of all attention that goes to the image.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    layers, registers, patches = attention.shape
    maps = attention.mean(axis=0)  # [M, patches]
    on_image = maps.sum(axis=-1)
    relative = maps * patches / np.maximum(on_image[:, None], 1e-12)
    panels = [(f"register {number + 1}", relative[number], on_image[number]) for number in range(registers)]
    if registers > 1:
        panels.insert(0, ("mean of all", relative.mean(axis=0), on_image.mean()))

    columns = min(COLUMNS, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    foot = 0.5 if caption else 0.12
    width = max(LEFT + columns * (PANEL + GAP) + BAR, 5.6)
    height = HEAD + rows * (NAME + PANEL) + (rows - 1) * GAP + foot
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")

    def place(left: float, top: float, wide: float, high: float) -> "Axes":
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    def write(top: float, text: str, **style: Any) -> None:
        figure.text(LEFT / width, 1 - top / height, text, va="top", parse_math=False, **style)

    write(0.16, title, fontsize=11, weight="bold", color=INK)
    of_layers = "in layer 1" if layers == 1 else f"mean of layers 1 to {layers}"
    told = f"attention to each patch, times an even spread, {of_layers}; per cent: its share that goes to the image"
    write(0.42, told, fontsize=7.5, color=FAINT)
    if caption:
        write(height - foot + 0.17, textwrap.shorten(caption, int(12 * width), placeholder=" …"), fontsize=9, color=INK)
    scale = ScalarMappable(Normalize(0, max(float(np.quantile(relative, 0.995)), 2.0)), _colours())
    image = picture.transpose(1, 2, 0) / 255
    for number in range(len(panels) + 1):
        row, column = divmod(number, columns)
        axes = place(LEFT + column * (PANEL + GAP), HEAD + row * (NAME + PANEL + GAP) + NAME, PANEL, PANEL)
        axes.set_axis_off()
        if number == 0:
            _draw(axes, image, "image", "")
            continue
        name, values, share = panels[number - 1]
        grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)  # colour is the attention's alone
        _draw(axes, grey * DIMMED, name, f"{share:.0%}")
        side = math.isqrt(patches)
        axes.imshow(scale.to_rgba(values.reshape(side, side)), extent=(0, 1, 1, 0), interpolation="nearest")
    bar = figure.colorbar(scale, cax=place(LEFT + columns * (PANEL + GAP) + 0.1, HEAD + NAME, 0.13, PANEL))
    bar.ax.set_facecolor(str(DIMMED / 2))  # grey, as what the colours lie on
    bar.ax.tick_params(labelsize=7, length=0, colors=FAINT)
    bar.ax.set_title("times", fontsize=7, color=FAINT, pad=5)
    bar.outline.set_visible(False)
    return figure


def _colours() -> "ListedColormap":
    """Transparent where there is no attention, so that the picture stays visible."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    strength = np.linspace(0, 1, 256)
    rgba = colormaps[COLOURS](0.25 + 0.75 * strength)
    rgba[:, 3] = OPAQUE * np.minimum(strength / 0.4, 1)
    return ListedColormap(rgba)


def _draw(axes: "Axes", image: np.ndarray, name: str, share: str) -> None:
    axes.imshow(image, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.text(0, 1.025, name, transform=axes.transAxes, fontsize=8, color=INK, va="bottom")
    axes.text(1, 1.025, share, transform=axes.transAxes, fontsize=7.5, color=FAINT, va="bottom", ha="right")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="victor-jax heatmap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a folder of a model with registers")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--out", required=True, metavar="PNG")
    parser.add_argument("--prompt", help="a question to the model; its answer is written below")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args(arguments)
    draw(given.model, given.image, given.out, given.prompt, given.dtype)


def draw(
    model: str | Path, image: str | Path, out: str | Path, prompt: str | None = None, dtype: str = "bfloat16"
) -> None:
    from victor_jax.analysis.registers import register_attention
    from victor_jax.inference.prompts import open_picture
    from victor_jax.inference.vlm import load

    picture, out = open_picture(image), Path(out)
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out={out} must end in .png, .pdf or .svg")
    vlm = load(model, dtype=dtype)
    attention = register_attention(vlm, picture)
    caption = f"{prompt}  \N{RIGHTWARDS ARROW}  {vlm.generate([prompt], [picture], 32)[0]}" if prompt else ""
    registers = f"{attention.shape[1]} register{'s' * (attention.shape[1] > 1)}"
    title = f"What {registers} read of {vlm.config.vision.patches} patches"
    figure = heatmap(attention, vlm.prompter.pixels(picture), title, caption)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an answer may hold any character
            figure.savefig(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    print(f"wrote {out}")
