"""The figures of docs/study.md. Bars are 95 % intervals over seeds; a point without one has a single seed."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.claims import STEPS, VICTOR
from benchmarks.study.effects import right
from benchmarks.study.grid import LAYERS, LLAVA, REGISTERS, K, at, from_scratch
from benchmarks.study.records import Record, Results, mean_flops

# Okabe and Ito, for every kind of eye
BLUE, SKY, ORANGE, GREEN, RED, PINK = "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
GREY, LIGHT = "#6b7280", "#e5e7eb"
OF_LAYER = dict(zip(LAYERS, (RED, ORANGE, GREEN, BLUE), strict=True))
OF_REGISTERS = dict(zip((0, *REGISTERS), (GREY, PINK, RED, BLUE, GREEN, SKY), strict=True))
OTHERS = {  # besides the sweep, with their markers
    "last-8": "v",
    "random-8": "^",
    "windows-8": "s",
    **{at(name, 1): marker for name, marker in (("last-8", "v"), ("random-8", "^"), ("windows-8", "s"))},
    "perceiver": "P",
    "mqt": "X",
    "barred-8": "<",
    "elastic-16-as-8": "d",
    "visor-0-2": "1",
    "visor": "2",
    "visor-policy": "*",
    "dyvte": "p",
}
POLICIES = ("visor-policy", "dyvte")
Panels = list[tuple[tuple[int, ...], Axes]]  # questions of how many steps, and where they are drawn


def swept(registers: int, layer: int) -> str:
    """The point of so many registers; none are VTW."""
    return f"victor-{registers}-k{layer}" if registers else f"vtw-k{layer}"


def accuracy_over_compute(results: Results) -> Figure:
    """A line for each layer k: no registers, then ever more of them."""

    def x(name: str, _: Record) -> float:
        return mean_flops(results, name) / 1e6

    figure, panels = _panels("MFLOP of an image and a question")
    for steps, axes in panels:
        for k, colour in OF_LAYER.items():
            names = [swept(m, k) for m in (0, *REGISTERS)]
            _curve(
                axes,
                results,
                steps,
                names,
                x,
                color=colour,
                marker="o",
                label=f"k = {k}, no registers and more",
            )
        for name, marker in OTHERS.items():
            colour = OF_LAYER[1] if name.endswith("-k1") else GREY
            _curve(axes, results, steps, [name], x, color=colour, marker=marker, label=name)
        _curve(axes, results, steps, ["full"], x, color="black", marker="*", label="_full")
        axes.set_xlim(left=0)
    return _finished(figure, panels, results)


def accuracy_over_layer(results: Results) -> Figure:
    """A line for each number of registers, over k."""
    layer = {swept(m, k): k for m in (0, *REGISTERS) for k in LAYERS}
    figure, panels = _panels("layers below the cut, k")
    for steps, axes in panels:
        for m, colour in OF_REGISTERS.items():
            names, label = [swept(m, k) for k in LAYERS], f"{m} register{'s' * (m > 1)}" if m else "none (VTW, trained)"
            _curve(axes, results, steps, names, lambda name, _: layer[name], color=colour, marker="o", label=label)
        axes.set_xticks(LAYERS)
    return _finished(figure, panels, results)


def loss_of_training(results: Results) -> Figure:
    """As stage 2 went: from random weights over its compute, and from the trained model over its steps."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    scratch, start = figure.subplots(1, 2)
    vtw = swept(0, K)
    lines = ((LLAVA, "black", "-"), (from_scratch(VICTOR), OF_LAYER[K], "-"), (from_scratch(vtw), OF_LAYER[K], "--"))
    for name, colour, style in lines:
        _loss(scratch, results, name, "flops_per_step", color=colour, linestyle=style)
    scratch.set_xlabel("TFLOP of stage 2, from random weights", fontsize=9)
    _loss(start, results, "full", "", color="black")
    for k, colour in OF_LAYER.items():
        for m, style in ((8, "-"), (0, "--")):
            _loss(start, results, swept(m, k), "", color=colour, linestyle=style)
    start.set_xlabel(f"steps of stage 2, from `{LLAVA}`", fontsize=9)
    scratch.set_ylabel("loss, mean over seeds", fontsize=9)
    for axes in (scratch, start):
        axes.set_yscale("log")
        if axes.lines:
            axes.legend(frameon=False, fontsize=7, ncols=2)
        _plain(axes)
    return figure


def _loss(axes: Axes, results: Results, name: str, cost: str, **style: Any) -> None:
    """Of stage 2; `cost`: what a step is counted in, none: in steps."""
    if stages := [records[0]["training"]["finetune"] for records in results.of(name).values()]:
        curve = np.mean([stage["loss"] for stage in stages], axis=0)
        length = stages[0]["steps"] * (stages[0][cost] / 1e12 if cost else 1)
        axes.plot((np.arange(len(curve)) + 0.5) * length / len(curve), curve, linewidth=1.1, label=name, **style)


def choices_by_steps(results: Results) -> Figure:
    """What methods that choose give questions of each number of steps: the mean share of each plan, the cheapest
    first."""
    policies = [name for name in POLICIES if results.of(name)]
    figure = Figure(figsize=(10, 0.6 + 1.3 * max(len(policies), 1)), layout="constrained")
    for name, axes in zip(policies, figure.subplots(max(len(policies), 1), 1, squeeze=False)[:, 0], strict=False):
        shares = [records[0]["chosen"] for records in results.of(name).values()]
        plans = list(dict.fromkeys(plan for of_seed in shares for of_steps in of_seed.values() for plan in of_steps))
        left = np.zeros(len(STEPS))
        for plan in sorted(plans, key=lambda plan: (plan == "full", plan)):
            part = [np.mean([of.get(str(steps), {}).get(plan, 0) for of in shares]) for steps in STEPS]
            axes.barh([f"{steps} step{'s' * (steps > 1)}" for steps in STEPS], part, left=left, label=plan)
            left += part
        axes.set_title(name, loc="left", fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
        _plain(axes)
    return figure


def _panels(below: str) -> tuple[Figure, Panels]:
    """One for questions of each number of steps, and one for all."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    figure.supxlabel(below, fontsize=9)
    which = [*((steps,) for steps in STEPS), ()]
    return figure, list(zip(which, figure.subplots(1, len(which), sharey=True), strict=True))


def _curve(
    axes: Axes,
    results: Results,
    steps: tuple[int, ...],
    names: Iterable[str],
    x: Callable[[str, Record], float],
    **style: Any,
) -> None:
    """Through those points that are measured."""
    found = [(name, right(name, *steps).estimate(results)) for name in names]
    measured = [(name, estimate) for name, estimate in found if estimate]
    if not measured:
        return
    places = [x(name, results.one(name)) for name, _ in measured]
    means = [100 * estimate.mean for _, estimate in measured]
    bars = [100 * estimate.half if estimate.seeds > 1 else 0 for _, estimate in measured]
    axes.errorbar(places, means, bars, markersize=4.5, linewidth=1.1, capsize=2, **style)


def _finished(figure: Figure, panels: Panels, results: Results) -> Figure:
    """What all panels have: titles, the lines of full and of the floor, one legend."""
    for steps, axes in panels:
        for name, style, label in (("full", "-", "full"), ("no-image", "--", "without the image")):
            if found := right(name, *steps).estimate(results):
                axes.axhline(100 * found.mean, color=GREY, linewidth=0.8, linestyle=style, label=label, zorder=0)
        title = f"questions of {steps[0]} step{'s' * (steps[0] > 1)}" if steps else "all questions"
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylim(0, 103)
        _plain(axes)
    panels[0][1].set_ylabel("right answers, %", fontsize=9)
    handles, labels = panels[-1][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
