"""Tables and figures of docs/study.md, from the result files alone."""

from pathlib import Path
from typing import Any

from benchmarks.machine import table
from benchmarks.study import figures
from benchmarks.study.claims import CLAIMS, STEPS, Claim
from benchmarks.study.effects import kept, loss, right
from benchmarks.study.grid import SIZES, points, trainings
from benchmarks.study.records import Estimate, Results, mean_flops, timed, training_cost
from victor_jax.errors import UserError
from victor_jax.files import write_whole

DEFAULT = next(iter(SIZES))
FIGURES = {
    "accuracy": (figures.accuracy_over_compute, "right answers over the compute of a question"),
    "layers": (figures.accuracy_over_layer, "right answers over the layer at which the visual tokens leave"),
    "choices": (figures.choices_by_steps, "which plan answered questions of how many steps"),
    "loss": (
        figures.loss_of_training,
        "loss of stage 2 from random weights and from the trained model",
    ),
}


def report(folder: Path, document: Path) -> str:
    """Fills the document's marked parts, draws its figures beside it, and returns the verdicts."""
    results = measured(folder)
    write_whole(document, page(document.read_text(), results))
    for size, of in results.items():
        for name, (draw, _) in FIGURES.items() if of.records else ():
            file = document.parent / figure_of(size, name)
            file.parent.mkdir(exist_ok=True)
            draw(of).savefig(file, dpi=130)
    return verdicts_of(results)


def measured(folder: Path) -> dict[str, Results]:
    """By size; of the default one, though there were none."""
    every = {size: Results.read(folder, size) for size in SIZES}
    return {size: results for size, results in every.items() if results.records or size == DEFAULT}


def page(text: str, results: dict[str, Results]) -> str:
    """The document with its marked parts as the results have them."""
    text = filled(text, "verdicts", verdicts_of(results))
    return filled(text, "results", "\n\n".join(section(size, of) for size, of in results.items()))


def verdicts_of(results: dict[str, Results]) -> str:
    return "\n\n".join(f"{heading(size)}\n\n{verdicts(size, of)}" for size, of in results.items())


def figure_of(size: str, name: str) -> str:
    """From the document."""
    return f"images/study-{size}-{name}.png"


def filled(text: str, part: str, content: str) -> str:
    """The text with `content` between the two comments that mark the part."""
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"the document has no part {begin} … {end}: write both lines where it shall stand")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def heading(size: str) -> str:
    return f"### {SIZES[size].tokens} visual tokens, {SIZES[size].depth} layers"


# --- the claims -----------------------------------------------------------------------------------------------------


def verdicts(size: str, results: Results) -> str:
    return table([_verdict(claim, size, results) for claim in CLAIMS], numbers=False)


def _verdict(claim: Claim, size: str, results: Results) -> dict[str, Any]:
    verdict, found = claim.verdict(results)
    sizes = "" if size == DEFAULT else f" --sizes={size}"
    return {
        "claim": claim.says,
        "paper": claim.paper,
        "holds if": f"{claim.effect.says} {claim.side} {100 * claim.threshold:z.1f} {claim.effect.unit}",
        "found": f"{_interval(found)} {claim.effect.unit}, {_seeds(found)}" if found else "",
        "verdict": f"**{verdict}**" if found else verdict,
        "again": f"`python -m benchmarks.study --claims={claim.name}{sizes}`",
    }


def _interval(found: Estimate) -> str:
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return f"{mean:z.1f}" + (f" [{low:z.1f}, {high:z.1f}]" if found.seeds > 1 else "")


def _seeds(found: Estimate) -> str:
    return f"{found.seeds} seed{'s' * (found.seeds > 1)}"


# --- the measurements -----------------------------------------------------------------------------------------------


def section(size: str, results: Results) -> str:
    """What was measured at one size."""
    if not results.records:
        return f"{heading(size)}\n\nNot measured."
    drawn = [f"![{says}]({figure_of(size, name)})" for name, (_, says) in FIGURES.items()]
    return "\n\n".join([heading(size), origin(results), *drawn, accuracies(size, results), costs(size, results)])


def origin(results: Results) -> str:
    """Where the numbers come from."""
    records = results.records.values()
    of = {key: ", ".join(sorted({record["where"][key] for record in records})) for key in next(iter(records))["where"]}
    seeds = len({record["seed"] for record in records})
    return (
        f"{len(records)} results of {seeds} seeds; {of['date']}, revision {of['revision']}, {of['device']}, Python "
        f"{of['python']}, jax {of['jax']}. Right answers in %: means over seeds ± half of the 95 % interval; `lost` "
        "is relative to full, `above floor` compares what lies above the model without images."
    )


def accuracies(size: str, results: Results) -> str:
    """A row for each point that was measured."""
    rows = []
    for point, of in points(SIZES[size]).items():
        if not (seeds := len(results.of(point))):
            continue
        row: dict[str, Any] = {"": point, "seeds": seeds}
        row |= {f"{steps} step{'s' * (steps > 1)}": _mean(right(point, steps).estimate(results)) for steps in STEPS}
        row |= {"all": _mean(right(point).estimate(results)), "lost": _mean(loss(point).estimate(results))}
        row |= {"above floor": _mean(kept(point).estimate(results))}
        row |= {"MFLOP": "" if of.blind else mean_flops(results, point) / 1e6}
        rows.append(row | {"asked as": f"`{results.one(point)['asked']}`"})
    return table(rows)


def costs(size: str, results: Results) -> str:
    """What each training took; its time where a step of it was timed."""
    rows = []
    for point in trainings(SIZES[size]):
        if not (found := [records[0] for records in results.of(point).values()]):
            continue
        minutes = [training_cost(record, "seconds") / 60 for record in found if timed(record)]
        row: dict[str, Any] = {"": point}
        row |= {f"{stage} steps": of["steps"] for stage, of in found[0]["training"].items()}
        row |= {"TFLOP": training_cost(found[0], "flops") / 1e12}
        rows.append(row | {"minutes": time.mean if (time := Estimate.over(minutes)) else "not measured"})
    return table(rows)


def _mean(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:z.1f}" + (f" ± {100 * found.half:z.1f}" if found.seeds > 1 else "")
