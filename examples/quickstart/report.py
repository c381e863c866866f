"""What the quickstart shows at the end: a table, and accuracy over compute."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.quickstart.questions import KINDS
from victor_jax.analysis import flops
from victor_jax.compression.plan import Kind, Layers, Method
from victor_jax.compression.spec import parse
from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import VLMModule
from victor_jax.weights.read import open_checkpoint

PROMPT = 8  # text positions of a question, for counting its FLOPs
READING = """Visual positions are counted layer by layer, registers among them. MFLOP: to read an image and a question,
for positions as they are; a compiled program rounds each length up to a multiple of 8, so that one register costs what
eight do. Images per second are measured alone, one command after the other. Without the image, the full model
guesses."""
COLOURS = {"full": "#0072B2", "victor": "#D55E00", "vtw": "#009E73"}
INK, FAINT = "#1f2430", "#6b7280"
LOOKS = {1: "one step", 2: "two steps", 3: "three steps"}


@dataclass(frozen=True)
class Row:
    method: str  # as its compression is written
    registers: int
    positions: tuple[int, ...]  # visual tokens and registers in each layer
    flops: int  # of reading one image and its question
    score: float
    by_steps: dict[int, float]
    images_per_second: float

    @property
    def label(self) -> str:
        name = self.method.split(":")[0]
        return f"{name}, {self.registers} register{'s' * (self.registers > 1)}" if self.registers else name


@dataclass(frozen=True)
class Floor:
    """Of the full model without the images."""

    score: float
    by_steps: dict[int, float]


def read_rows(out: Path, methods: list[str]) -> tuple[list[Row], Floor]:
    blind = _result(out / methods[0] / "blind")
    return [_row(out / method) for method in methods], Floor(blind["score"] / 100, by_steps(blind["parts"]))


def _row(folder: Path) -> Row:
    result = _result(folder / "eval")
    config = open_checkpoint(folder / "finetune" / "model").config
    parsed = parse(result["settings"]["compression"], config)
    return Row(
        method=result["settings"]["compression"],
        registers=parsed.registers,
        positions=positions(parsed, config),
        flops=question_flops(config, parsed),
        score=result["score"] / 100,
        by_steps=by_steps(result["parts"]),
        images_per_second=result["settings"]["images_per_second"],
    )


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "digits" / "result.json").read_text())


def by_steps(percents: dict[str, float]) -> dict[int, float]:
    """Shares, of percents by kind; each kind is asked equally often."""
    steps = sorted({KINDS[kind].steps for kind in percents})
    return {n: statistics.mean(of / 100 for kind, of in percents.items() if KINDS[kind].steps == n) for n in steps}


def positions(method: Method, config: VLMConfig) -> tuple[int, ...]:
    """Visual tokens and registers, layer by layer."""
    counts = np.zeros((1, len(Kind)), np.int64)
    counts[0, [Kind.VISUAL, Kind.REGISTER]] = method.tokens_per_image(config), method.registers
    found: list[int] = []
    stream, parked = counts, np.zeros_like(counts)
    for step in method.plan.steps:
        if isinstance(step, Layers):
            found += [int(stream.sum())] * step.count
        else:
            stream, parked = step.after(stream, parked)
    return tuple(found)


def question_flops(config: VLMConfig, method: Method) -> int:
    """Of reading an image and a question of PROMPT text positions, up to the first token of the answer."""
    per_layer = positions(method, config)
    starts = np.cumsum([0, *method.plan.stages[:-1]])
    lengths = tuple(per_layer[start] + PROMPT for start in starts)
    work = flops.Work(rows=1, lengths=lengths, images=1, head=1)
    return flops.forward(VLMModule(config, method), work)


# --- to look at -----------------------------------------------------------------------------------------------------


def as_table(rows: list[Row], floor: Floor) -> str:
    """Markdown; `rows` begin with full."""
    full = rows[0]
    steps = list(floor.by_steps)
    head = ["method", "visual positions", *(LOOKS[n] for n in steps), "all", "MFLOP", "images/s"]
    lines = [head]
    for row in rows:
        cells = [row.label, " ".join(map(str, row.positions))]
        cells += [f"{row.by_steps[n]:.1%}" for n in steps]
        cells += [f"{row.score:.1%}", f"{row.flops / 1e6:.1f} ({row.flops / full.flops:.0%})"]
        cells += [f"{row.images_per_second:.0f} ({row.images_per_second / full.images_per_second:.1f} x)"]
        lines.append(cells)
    lines.append(["no image", "", *(f"{floor.by_steps[n]:.1%}" for n in steps), f"{floor.score:.1%}", "", ""])
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def draw(rows: list[Row], floor: Floor, file: Path) -> None:
    """Accuracy on the questions of most steps, about unseen digits, over the FLOPs of reading image and question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    steps = max(floor.by_steps)
    guessing = 100 * floor.by_steps[steps]
    axes.axhline(guessing, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "guessing, without the image",
        (1, guessing),
        (-2, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=FAINT,
        fontsize=8,
    )
    full = rows[0]
    label_at = min(100 * row.by_steps[steps] for row in rows)
    for row in sorted(rows, key=lambda row: -row.flops):
        x, y = row.flops / 1e6, 100 * row.by_steps[steps]
        colour = COLOURS[row.method.split(":")[0]]
        axes.plot(x, y, "o", color=colour, markersize=9)
        if row is full:
            axes.annotate(f"full: {y:.0f} %", (x, y + 4), ha="center", color=colour, fontsize=9)
            continue
        label_at -= 11  # points are neighbours: each has its label on a line of its own, below all of them
        axes.plot([x, x], [y, label_at], color=colour, linewidth=0.8)
        faster = row.images_per_second / full.images_per_second
        label = f" {row.label}: {y:.0f} %, {faster:.1f} times as fast"
        axes.annotate(label, (x, label_at), va="center", color=colour, fontsize=9)
    axes.set_xlim(0, full.flops / 1e6 * 1.15)
    axes.set_ylim(0, 115)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("compute: MFLOP to read an image and its question", color=INK)
    axes.set_ylabel("right answers, %", color=INK)
    title = f"Questions of {LOOKS[steps]} about digits that were never seen"
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(file)
