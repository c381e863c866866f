"""What the quickstart shows at the end: a table, and accuracy over compute."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from victor_jax.analysis import flops
from victor_jax.compression.plan import Kind, Layers, Method
from victor_jax.compression.spec import parse
from victor_jax.models.config import VLMConfig
from victor_jax.models.vlm import VLMModule
from victor_jax.weights.read import open_checkpoint

PROMPT = 16  # text positions of a question, for counting its FLOPs
READING = """`of full` is the share of full's accuracy; `above floor` compares what lies above the floor, which is the
accuracy of the full model without the images. Visual positions are counted layer by layer, registers among them.
Training is the time of the steps of both stages. What is timed shared the cores with other commands."""
COLOURS = {"full": "#0072B2", "victor": "#D55E00", "vtw": "#009E73"}
INK, FAINT = "#1f2430", "#6b7280"


@dataclass(frozen=True)
class Row:
    method: str
    registers: int
    positions: tuple[int, ...]  # visual tokens and registers in each layer
    flops: int  # of reading one image and its question
    score: float
    by_kind: dict[str, float]
    floor: float
    seconds: float
    images_per_second: float


def read_rows(out: Path, methods: list[str]) -> list[Row]:
    floor = _result(out / "full" / "blind")["score"] / 100
    return [_row(out / method, method, floor) for method in methods]


def _row(folder: Path, method: str, floor: float) -> Row:
    result = _result(folder / "eval")
    config = open_checkpoint(folder / "finetune" / "model").config
    parsed = parse(result["settings"]["compression"], config)
    return Row(
        method=method,
        registers=parsed.registers,
        positions=positions(parsed, config),
        flops=question_flops(config, parsed),
        score=result["score"] / 100,
        by_kind={kind: percent / 100 for kind, percent in result["parts"].items()},
        floor=floor,
        seconds=sum(_seconds(folder / stage / "metrics.jsonl") for stage in ("pretrain", "finetune")),
        images_per_second=result["settings"]["images_per_second"],
    )


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "digits" / "result.json").read_text())


def _seconds(metrics: Path) -> float:
    return sum(json.loads(line)["step_time"] for line in metrics.read_text().splitlines())


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


def as_table(rows: list[Row]) -> str:
    """Markdown; `rows` begin with full."""
    full = rows[0]
    kinds = list(full.by_kind)
    head = ["method", "registers", "visual positions", *(kind.replace("_", " ") for kind in kinds), "all"]
    head += ["of full", "above floor", "training", "images/s"]
    lines = [head]
    for row in rows:
        above = (row.score - row.floor) / (full.score - row.floor)
        cells = [row.method, str(row.registers), " ".join(map(str, row.positions))]
        cells += [f"{row.by_kind[kind]:.1%}" for kind in kinds]
        cells += [f"{row.score:.1%}", f"{row.score / full.score:.1%}", f"{above:.1%}"]
        lines.append([*cells, f"{row.seconds:.0f} s", f"{row.images_per_second:.0f}"])
    floor = ["no image", "", ""] + [""] * len(kinds) + [f"{full.floor:.1%}", f"{full.floor / full.score:.1%}", "0.0%"]
    lines.append([*floor, "", ""])
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def draw(rows: list[Row], file: Path) -> None:
    """Accuracy on unseen digits over the FLOPs of reading an image and its question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    floor = rows[0].floor
    axes.axhline(floor * 100, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "without the image",
        (1, floor * 100),
        (-2, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=FAINT,
        fontsize=8,
    )
    for number, row in enumerate(sorted(rows, key=lambda row: row.flops)):
        x, y = row.flops / 1e6, row.score * 100
        axes.plot(x, y, "o", color=COLOURS[row.method], markersize=9)
        label = row.method if not row.registers else f"{row.method}, {row.registers} registers"
        below = -20 if number % 2 == 0 else 11  # neighbours would write over each other
        axes.annotate(
            f"{label}: {y:.1f} %",
            (x, y),
            (0, below),
            textcoords="offset points",
            ha="center",
            color=COLOURS[row.method],
            fontsize=9,
        )
    axes.set_xlim(0, max(row.flops for row in rows) / 1e6 * 1.15)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("MFLOP to read an image and its question", color=INK)
    axes.set_ylabel("right answers, %", color=INK)
    axes.set_title("Questions about digits that were never seen", color=INK, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(file)
