"""victor-jax heatmap --model=DIR --image=FILE --out=PNG [--prompt=…]: what each register read.

A panel for each register: its attention over the patches of the image in the layers that still see it, drawn over
the image as the model sees it. With a prompt the model's answer stands below.
"""

import argparse
import math
import textwrap
import warnings
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from victor_jax.errors import UserError

COLUMNS, PANEL = 5, 2.1  # panels of a line, inches of one
COLOURS, OPAQUE, DIMMED = "inferno", 0.72, 0.8
FAINT = "#6b7280"


def heatmap(
    attention: np.ndarray,  # float32 [layers, M, patches]
    picture: np.ndarray,  # uint8 [3, size, size]
    title: str,
    caption: str = "",
) -> Figure:
    """The picture, the mean of all registers, then one panel for each register, averaged over the layers.

    Colours say how many times more a patch is attended to than if the attention were spread evenly over the image;
    the number above a panel is the share of all attention that goes to the image.
    """
    layers, registers, patches = attention.shape
    maps = attention.mean(axis=0)  # [M, patches]
    on_image = maps.sum(axis=-1)
    relative = maps * patches / np.maximum(on_image[:, None], 1e-12)
    panels = [(f"register {number + 1}", relative[number], on_image[number]) for number in range(registers)]
    if registers > 1:
        panels.insert(0, ("mean of all", relative.mean(axis=0), on_image.mean()))

    columns = min(COLUMNS, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    width = columns * PANEL + 0.7
    figure = Figure(figsize=(width, rows * (PANEL + 0.1) + 0.9), dpi=160, layout="constrained")
    of_layers = "in layer 1" if layers == 1 else f"mean of layers 1 to {layers}"
    told = f"attention to each patch, times an even spread, {of_layers}; per cent: its share that goes to the image"
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left", parse_math=False)
    grid = figure.add_subfigure(figure.add_gridspec()[0])  # for a second title
    grid.suptitle(told, fontsize=7.5, color=FAINT, x=0.01, ha="left")
    scale = ScalarMappable(Normalize(0, max(float(np.quantile(relative, 0.995)), 2.0)), _colours())
    image, side = picture.transpose(1, 2, 0) / 255, math.isqrt(patches)
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)  # colour is the attention's alone
    first, *others = axes = list(grid.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.set_axis_off()
    first.imshow(image)
    first.set_title("image", fontsize=8, loc="left")
    for each, (name, values, share) in zip(others, panels, strict=False):
        each.imshow(grey * DIMMED, extent=(0, 1, 1, 0))
        each.imshow(scale.to_rgba(values.reshape(side, side)), extent=(0, 1, 1, 0), interpolation="nearest")
        each.set_title(name, fontsize=8, loc="left")
        each.set_title(f"{share:.0%}", fontsize=7.5, loc="right", color=FAINT)
    bar = grid.colorbar(scale, ax=axes, shrink=1 / rows, anchor=(0, 1), aspect=16)
    bar.ax.set_facecolor(str(DIMMED / 2))  # grey, as what the colours lie on
    bar.ax.tick_params(labelsize=7, length=0, colors=FAINT)
    bar.ax.set_title("times", fontsize=7, color=FAINT)
    bar.outline.set_visible(False)
    if caption:
        shortened = textwrap.shorten(caption, int(12 * width), placeholder=" …")
        figure.supxlabel(shortened, fontsize=9, x=0.01, ha="left", parse_math=False)
    return figure


def _colours() -> ListedColormap:
    """Transparent where there is no attention, so that the picture stays visible."""
    strength = np.linspace(0, 1, 256)
    rgba = colormaps[COLOURS](0.25 + 0.75 * strength)
    rgba[:, 3] = OPAQUE * np.minimum(strength / 0.4, 1)
    return ListedColormap(rgba)


def main(arguments: list[str]) -> None:
    from victor_jax.analysis.registers import register_attention
    from victor_jax.inference.prompts import open_picture
    from victor_jax.inference.vlm import load

    parser = argparse.ArgumentParser(
        prog="victor-jax heatmap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a folder of a model with registers")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--out", required=True, metavar="PNG", type=Path)
    parser.add_argument("--prompt", help="a question to the model; its answer is written below")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args(arguments)
    picture, out = open_picture(given.image), given.out
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out={out} must end in .png, .pdf or .svg")
    vlm = load(given.model, dtype=given.dtype)
    attention = register_attention(vlm, picture)
    answer = vlm.generate([given.prompt], [picture], 32)[0] if given.prompt else ""
    caption = f"{given.prompt}  \N{RIGHTWARDS ARROW}  {answer}" if given.prompt else ""
    registers = f"{attention.shape[1]} register{'s' * (attention.shape[1] > 1)}"
    title = f"What {registers} read of {vlm.config.vision.patches} patches"
    figure = heatmap(attention, vlm.prompter.pixels(picture), title, caption)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an answer may hold any character
            figure.savefig(out, bbox_inches="tight", pad_inches=0.15)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    print(f"wrote {out}")
