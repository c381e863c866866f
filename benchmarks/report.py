"""python -m benchmarks.report: the tables and figures of every result in benchmarks/results/.

The tables go to the standard output as Markdown; figures are written beside the JSON that they were drawn from.
"""

import importlib
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"
BLUE, SKY, ORANGE, GREEN = (
    "#0072b2",
    "#56b4e9",
    "#e69f00",
    "#009e73",
)  # Okabe and Ito, for every kind of eye


def report(folder: Path) -> str:
    """Markdown of all results in `folder`, in the order of their names; draws the figures beside them."""
    figures = {
        "inference": {"speedup": speedup, "split": split},
        "training": {"steps": steps},
        "methods": {"methods": methods},
    }
    sections = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        kind = result["benchmark"]
        tables = importlib.import_module(f"benchmarks.{kind}").tables(result)
        sections += [f"## {file.stem}", machine.heading(result), tables]
        for name, draw in figures.get(kind, {}).items():
            path = file.with_name(f"{file.stem}-{name}.png")
            draw(result).savefig(path, dpi=160)
            sections.append(f"![{file.stem}, {name}]({path.name})")
    return "\n\n".join(sections)


def speedup(result: machine.Result) -> Figure:
    """Of Victor over full against the number of registers, with what FLOPs allow as a line."""
    full, *others = _first_batch(result)
    swept = {int(r["name"].split("=")[1].split(",")[0]): r for r in others if r["name"].endswith(",layer=3")}
    numbers = sorted(swept)
    figure, axes = _canvas(result, 4.0, "Speed-up of Victor over the full model, registers cut at layer 3")
    lines = {"what FLOPs allow, first token": ("flops", "prefill", "--"), "first token": ("seconds", "prefill", "-o")}
    lines |= {f"answers of {room} tokens": ("seconds", f"answer {room}", "-s") for room in result["new_tokens"]}
    axes.set_prop_cycle(color=["gray", BLUE, ORANGE, GREEN])
    for label, (kind, part, style) in lines.items():
        axes.plot(numbers, [full[kind][part] / swept[n][kind][part] for n in numbers], style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, map(str, numbers))
    axes.set(xlabel="registers", ylabel="speed-up over full", ylim=(0, None))
    axes.grid(axis="y")
    axes.legend()
    return figure


def split(result: machine.Result) -> Figure:
    """Where the time of a long answer goes: vision, prefill, decode."""
    room, records = result["new_tokens"][-1], _first_batch(result)
    figure, axes = _canvas(result, 1.4 + 0.3 * len(records), f"Answers of {room} tokens")
    # Longest first: each bar covers the end of the one before. A peer's vision tower is timed with its prefill.
    parts = {f"answer {room}": ("decode", SKY), "prefill": ("prefill", BLUE), "vision": ("vision", ORANGE)}
    for part, (label, colour) in parts.items():
        spent = [record["seconds"].get(part, 0.0) for record in records]
        bars = axes.barh([record["name"] for record in records], spent, color=colour, label=label)
        if label == "decode":
            axes.bar_label(bars, fmt="%.2f s", padding=5)
    return _finished(figure, axes)


def steps(result: machine.Result) -> Figure:
    """Seconds of a step, and where Victor's would be if time went with FLOPs."""
    records = result["records"]
    full = {r["stage"]: r for r in records if r["name"] == "full"}
    names, seconds = [f"{r['stage']}, {r['name']}" for r in records], [r["seconds"] for r in records]
    bound = [full[r["stage"]]["seconds"] * r["flops"] / full[r["stage"]]["flops"] for r in records]
    figure, axes = _canvas(result, 1.4 + 0.3 * len(records), "Training step")
    bars = axes.barh(names, seconds, color=[SKY if r["name"] == "full" else BLUE for r in records])
    axes.bar_label(bars, fmt="%.2f s", padding=12)
    axes.plot(bound, names, "|", color=ORANGE, markersize=15, markeredgewidth=2.4, label="what FLOPs allow")
    return _finished(figure, axes)


def methods(result: machine.Result) -> Figure:
    """Accuracy against the time of the first token, or where it is not known, those times beside what FLOPs allow."""
    records = result["records"]
    names, times = [r["name"] for r in records], [1000 * r["seconds"]["prefill"] for r in records]
    if known := [(time, r["accuracy"], r["name"]) for time, r in zip(times, records, strict=True) if "accuracy" in r]:
        figure, axes = _canvas(result, 4.4, "Accuracy against the time of the first token")
        axes.plot(*zip(*[(time, accuracy) for time, accuracy, _ in known], strict=True), "o", color=BLUE)
        for time, accuracy, name in known:
            axes.annotate(name, (time, accuracy), xytext=(5, 3), textcoords="offset points", fontsize=7)
        axes.set(xlabel=f"first token, ms, {records[0]['rows']} rows", ylabel="accuracy", xlim=(0, None))
        axes.grid()
        axes.margins(x=0.3)
        return figure
    figure, axes = _canvas(result, 1.4 + 0.22 * len(records), f"First token, {records[0]['rows']} rows")
    bars = axes.barh(names, times, color=[SKY if name == "full" else BLUE for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=10, fontsize=7)
    bound = [times[0] * r["flops"] / records[0]["flops"] for r in records]
    axes.plot(bound, names, "|", color=ORANGE, markersize=9, markeredgewidth=2.0, label="what FLOPs allow")
    axes.tick_params(axis="y", labelsize=7)
    finished = _finished(figure, axes)
    axes.set(xlabel="milliseconds")
    return finished


def _first_batch(result: machine.Result) -> list[dict]:
    return [r for r in result["records"] if r["batch"] == result["records"][0]["batch"]]


def _canvas(result: machine.Result, height: float, title: str) -> tuple[Figure, Axes]:
    where = result["machine"]
    device = where["processor"] if where["platform"] == "cpu" else where["device"]
    figure = Figure(figsize=(7.2, height), layout="constrained")
    figure.supxlabel(f"{result['preset']}, {device}, {result['dtype']}, {where['date']}", fontsize=7, color="gray")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(figure: Figure, axes: Axes) -> Figure:
    """Of bars, the first one on top."""
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    axes.margins(x=0.15)
    axes.grid(axis="x")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


if __name__ == "__main__":
    print(report(RESULTS))
