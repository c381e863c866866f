"""python -m benchmarks.report: the tables and figures of every result in benchmarks/results/.

The tables go to the standard output as Markdown; figures are written beside the JSON that they were drawn from.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import conversion, inference, loading, machine, startup, training

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module for module in (conversion, inference, loading, startup, training)
}
# Okabe and Ito's colours: told apart by every kind of eye.
BLUE, SKY, ORANGE, GREEN = "#0072b2", "#56b4e9", "#e69f00", "#009e73"
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def report(folder: Path) -> str:
    """Markdown of all results in `folder`, in the order of their names; draws the figures beside them."""
    figures = {"inference": {"speedup": speedup, "split": split}, "training": {"steps": steps}}
    sections = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        kind = result["benchmark"]
        sections += [f"## {file.stem}", machine.heading(result), BENCHMARKS[kind].tables(result)]
        for name, draw in figures.get(kind, {}).items():
            path = file.with_name(f"{file.stem}-{name}.png")
            with matplotlib.rc_context(STYLE):
                draw(result).savefig(path)
            sections.append(f"![{file.stem}, {name}]({path.name})")
    return "\n\n".join(sections)


def speedup(result: machine.Result) -> Figure:
    """Of Victor over full against the number of registers, with what FLOPs allow as a line."""
    full, *others = _first_batch(result)
    swept = {int(r["name"].split("=")[1].split(",")[0]): r for r in others if r["name"].endswith(",layer=3")}
    numbers = sorted(swept)
    figure, axes = _canvas(result, 4.0, "Speed-up of Victor over the full model, registers cut at layer 3")
    lines = [("flops", "prefill", "what FLOPs allow, first token", "gray", "--")]
    lines.append(("seconds", "prefill", "first token", BLUE, "-o"))
    for room, colour, style in zip(result["new_tokens"], (ORANGE, GREEN), ("-s", "-^"), strict=True):
        lines.append(("seconds", f"answer {room}", f"answers of {room} tokens", colour, style))
    for kind, part, label, colour, style in lines:
        axes.plot(numbers, [full[kind][part] / swept[n][kind][part] for n in numbers], style, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, map(str, numbers))
    axes.set(xlabel="registers", ylabel="speed-up over full", ylim=(0, None))
    axes.grid(axis="y")
    axes.legend()
    return figure


def split(result: machine.Result) -> Figure:
    """Where the time of a long answer goes: vision, prefill, decode."""
    room, records = result["new_tokens"][-1], _first_batch(result)
    seconds = {r["name"]: r["seconds"] for r in records}
    figure, axes = _canvas(result, 1.4 + 0.3 * len(seconds), f"Answers of {room} tokens")
    whole = [each[f"answer {room}"] for each in seconds.values()]
    # Longest first: each bar covers the end of the one before. A peer's vision tower is timed with its prefill.
    axes.barh(list(seconds), whole, color=SKY, label="decode")
    axes.barh(list(seconds), [each["prefill"] for each in seconds.values()], color=BLUE, label="prefill")
    axes.barh(list(seconds), [each.get("vision", 0.0) for each in seconds.values()], color=ORANGE, label="vision")
    _finish_bars(axes, whole, whole)
    return figure


def steps(result: machine.Result) -> Figure:
    """Seconds of a step, and where Victor's would be if time went with FLOPs."""
    records = result["records"]
    full = {r["stage"]: r for r in records if r["name"] == "full"}
    names, seconds = [f"{r['stage']}, {r['name']}" for r in records], [r["seconds"] for r in records]
    bound = [full[r["stage"]]["seconds"] * r["flops"] / full[r["stage"]]["flops"] for r in records]
    figure, axes = _canvas(result, 1.4 + 0.3 * len(records), "Training step")
    axes.barh(names, seconds, color=[SKY if r["name"] == "full" else BLUE for r in records])
    axes.plot(bound, names, "|", color=ORANGE, markersize=15, markeredgewidth=2.4, label="what FLOPs allow")
    _finish_bars(axes, seconds, list(map(max, seconds, bound)))
    return figure


def _first_batch(result: machine.Result) -> list[dict]:
    return [r for r in result["records"] if r["batch"] == result["records"][0]["batch"]]


def _canvas(result: machine.Result, height: float, title: str) -> tuple[Figure, Axes]:
    where = result["machine"]
    device = where["processor"] if where["platform"] == "cpu" else where["device"]
    figure = Figure(figsize=(7.2, height))
    figure.supxlabel(f"{result['preset']}, {device}, {result['dtype']}, {where['date']}", fontsize=7, color="gray")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _finish_bars(axes: Axes, seconds: list[float], right: list[float]) -> None:
    """Writes each bar's seconds to its right, the first bar on top."""
    for row, (value, end) in enumerate(zip(seconds, right, strict=True)):
        axes.annotate(f"{value:.2f} s", (end, row), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.4 * max(right)), xlabel="seconds")
    axes.grid(axis="x")
    axes.legend(loc="lower right")


if __name__ == "__main__":
    print(report(RESULTS))
