"""python -m benchmarks.report: the tables and figures of every result in benchmarks/results/.

The tables go to the standard output as Markdown; a figure lies beside the JSON that it was drawn from.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks import inference, loading, machine, startup, training

RESULTS = Path(__file__).parent / "results"
TABLES = {
    "inference": inference.tables,
    "training": training.tables,
    "startup": startup.tables,
    "loading": loading.tables,
}
INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Okabe and Ito's colours: told apart by every kind of eye.
BLUE, SKY, ORANGE, GREEN = "#0072b2", "#56b4e9", "#e69f00", "#009e73"
BAR = 0.34  # inches per bar


def report(folder: Path) -> str:
    """Markdown of all results in `folder`, in the order of their names; draws the figures beside them."""
    sections = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        lines = [f"## {file.stem}", machine.heading(result), TABLES[result["benchmark"]](result)]
        for name, figure in figures(result).items():
            path = file.with_name(f"{file.stem}-{name}.png")
            figure.savefig(path)
            lines.append(f"![{file.stem}, {name}]({path.name})")
        sections.append("\n\n".join(lines))
    return "\n\n".join(sections)


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    if result["benchmark"] in ("startup", "loading"):
        return {}
    if result["benchmark"] == "training":
        return {"steps": steps(result)}
    return {"speedup": speedup(result), "split": split(result)}


def speedup(result: dict[str, Any]) -> Figure:
    """Of Victor over full against the number of registers, with what FLOPs allow as a line."""
    records = [r for r in result["records"] if r["batch"] == result["records"][0]["batch"]]
    full = records[0]
    swept = sorted((registers_of(r["name"]), r) for r in records if r["name"].endswith(",layer=3"))
    numbers = [number for number, _ in swept]
    figure, axes = _canvas(7.2, 4.0, _where(result, f"batch {full['batch']}, registers cut at layer 3"))

    def over(part: str, of: str) -> list[float]:
        return [full[of][part] / record[of][part] for _, record in swept]

    allowed = over("prefill", "flops")
    axes.plot(numbers, allowed, "--", color=FAINT, linewidth=1.4, label="FLOPs allow, first token")
    shown = [("prefill", "first token", BLUE, "o")]
    shown += [
        (f"answer {room}", f"answers of {room} tokens", colour, marker)
        for room, colour, marker in zip(result["new_tokens"], (ORANGE, GREEN), "s^", strict=True)
    ]
    for part, label, colour, marker in shown:
        axes.plot(numbers, over(part, "seconds"), marker=marker, color=colour, linewidth=1.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("registers")
    axes.set_ylabel("speed-up over full")
    axes.grid(axis="y", color=GRID)
    _title(axes, "Speed-up of Victor over the full model", axes.get_legend_handles_labels()[0])
    return figure


def split(result: dict[str, Any]) -> Figure:
    """Where the time of a long answer goes: vision, prefill, decode."""
    room = result["new_tokens"][-1]
    records = [r for r in result["records"] if r["batch"] == result["records"][0]["batch"]]
    names = [_short(r["name"]) for r in records]
    rows = range(len(records))
    figure, axes = _canvas(7.2, 1.7 + BAR * len(records), _where(result, f"batch {records[0]['batch']}"))
    seen = [r["seconds"].get("vision", 0.0) for r in records]
    first = [r["seconds"]["prefill"] for r in records]
    whole = [r["seconds"][f"answer {room}"] for r in records]
    axes.barh(rows, seen, color=ORANGE, label="vision")
    bars = axes.barh(rows, np.subtract(first, seen), left=seen, color=BLUE, label="prefill")
    axes.barh(rows, np.subtract(whole, first), left=first, color=SKY, label="decode")
    handles = axes.get_legend_handles_labels()[0]
    peers = [bar for bar, record in zip(bars, records, strict=True) if "vision" not in record["seconds"]]
    for bar in peers:  # its vision tower is timed with its prefill
        bar.set(hatch="////", edgecolor="white")
    if peers:
        handles.append(Patch(facecolor=BLUE, edgecolor="white", hatch="////", label="vision and prefill"))
    _label_bars(axes, whole, whole)
    axes.set_yticks(list(rows), names)
    axes.set_xlabel("seconds")
    _title(axes, f"Answers of {room} tokens", handles)
    return figure


def steps(result: dict[str, Any]) -> Figure:
    """Seconds of a step, and where Victor's would be if time went with FLOPs."""
    records = result["records"]
    full = {r["stage"]: r for r in records if r["name"] == "full"}
    rows = range(len(records))
    figure, axes = _canvas(7.2, 1.7 + BAR * len(records), _where(result, f"remat {result['remat']}"))
    seconds = [r["seconds"] for r in records]
    bound = [full[r["stage"]]["seconds"] * r["flops"] / full[r["stage"]]["flops"] for r in records]
    axes.barh(rows, seconds, color=[SKY if r["name"] == "full" else BLUE for r in records])
    marked = [row for row in rows if records[row]["name"] != "full"]
    axes.plot([bound[row] for row in marked], marked, "|", color=ORANGE, markersize=15, markeredgewidth=2.4)
    _label_bars(axes, seconds, np.maximum(seconds, bound).tolist())
    axes.set_yticks(list(rows), [f"{r['stage']}, {_short(r['name'])}" for r in records])
    axes.set_xlabel("seconds per step")
    _title(axes, "Training step", [Patch(color=ORANGE, label="what FLOPs allow")])
    return figure


def _label_bars(axes: Axes, seconds: list[float], right: list[float]) -> None:
    """Writes each bar's seconds to its right, the first bar on top."""
    for row, (value, end) in enumerate(zip(seconds, right, strict=True)):
        axes.annotate(f"{value:.2f} s", (end, row), (5, 0), textcoords="offset points", va="center", color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(right))
    axes.grid(axis="x", color=GRID)


def registers_of(name: str) -> int:
    """Of `victor:registers=8,layer=3`."""
    return int(name.partition("registers=")[2].partition(",")[0])


def _short(name: str) -> str:
    return name.replace("victor:registers=", "victor, M = ").replace(",layer=", ", k = ")


def _where(result: dict[str, Any], more: str) -> str:
    where = result["machine"]
    device = where["processor"] if where["platform"] == "cpu" else where["device"]
    return f"{result['preset']}, {device}, {result['dtype']}, {more}, {where['date']}"


def _canvas(width: float, height: float, foot: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    figure.supxlabel(foot, fontsize=7, color=FAINT, x=0.995, ha="right")
    return figure, axes


def _title(axes: Axes, text: str, handles: list[Any]) -> None:
    """With the legend in a line below it."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, pad=24)
    legend = axes.legend(
        handles=handles,
        ncols=len(handles),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        borderaxespad=0.2,
        handlelength=1.7,
        columnspacing=1.5,
        fontsize=9,
        frameon=False,
    )
    legend.set_in_layout(False)  # it may reach beyond the axes


def main() -> None:
    print(report(RESULTS))


if __name__ == "__main__":
    main()
