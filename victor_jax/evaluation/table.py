"""What several benchmarks say together: one table, the paper's mean, and what a method kept of the full model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from victor_jax.errors import UserError
from victor_jax.evaluation.runner import RESULT
from victor_jax.evaluation.tasks import Task
from victor_jax.results import read_json

# The twelve of Victor's paper (arXiv 2410.14072), each with what may stand in for it.
PAPER = (
    ("vqav2", "vqav2-val"),
    ("gqa",),
    ("vizwiz", "vizwiz-val"),
    ("scienceqa",),
    ("textvqa",),
    ("pope",),
    ("mme",),
    ("mmbench",),
    ("seed-bench",),
    ("llava-w",),
    ("mm-vet",),
    ("mmmu",),
)

Result = Mapping[str, Any]  # of result.json


def read_results(out: str | Path, tasks: Sequence[Task], flag: str, with_images: bool) -> dict[str, Result]:
    """Of another run, those of the same questions. Refused where the questions or the pictures are not as they must
    be."""
    found: dict[str, Result] = {}
    for task in tasks:
        name = task.benchmark.name
        if not (file := Path(out) / name / RESULT).exists():
            continue
        result = read_json(file)
        settings = result["settings"]
        if settings["questions_sha256"] != task.digest:
            raise UserError(f"{flag}={out} answered other questions of {name}: evaluate it with the same files")
        if settings["with_images"] != with_images:
            raise UserError(f"{flag}={out} answered {name} {'without' if with_images else 'with'} pictures")
        found[name] = result
    if not found:
        raise UserError(f"{flag}={out} holds no result of {', '.join(task.benchmark.name for task in tasks)}")
    return found


def as_table(results: Sequence[Result], full: Mapping[str, Result], floor: Mapping[str, Result], out: Path) -> str:
    """Markdown, and what belongs beside the numbers. `full`: of the model with all visual tokens; `floor`: of that one
    without images."""
    head = ["benchmark", "score", "unit", "questions", "missing", "new tokens", "OCR", "questions' digest"]
    head += (["of full"] if full else []) + (["above floor"] if full and floor else [])
    lines = [head, *(_cells(one, full, floor)[: len(head)] for one in results)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    table = ["| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:])]
    notes = [note for one in results for note in _notes(one, out)]
    blocks = table, [mean_of_paper(results, full, floor)], notes, conditions(results)
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _cells(result: Result, full: Mapping[str, Result], floor: Mapping[str, Result]) -> list[str]:
    settings, name = result["settings"], result["benchmark"]
    shares = retained(result, full, None), retained(result, full, floor)
    return [
        name,
        "not scored here" if result["score"] is None else f"{result['score']:.2f}",
        result["unit"],
        str(result["questions"]),
        str(result["missing"]),
        str(settings["decoding"]["max_new_tokens"]),
        "yes" if settings["ocr"] else "no",
        settings["questions_sha256"][:12],
        *("-" if share is None else f"{share:.1%}" for share in shares),
    ]


def _notes(result: Result, out: Path) -> Iterator[str]:
    """The parts of a score, or how to come by one."""
    name, folder = result["benchmark"], out / result["benchmark"]
    if result["score"] is None and not result["submission"]:
        yield f"{name}: it takes all questions to have a score"
    elif result["score"] is None and result["judged"]:
        yield (
            f"{name}: {folder / result['submission']} is for its judge; put what it answers in "
            f"{folder / result['judged']} and give the same command again"
        )
    elif result["score"] is None:
        yield f"{name}: {folder / result['submission']} is for its server"
    elif result["parts"]:
        yield f"{name}: " + ", ".join(f"{part} {value:.2f}" for part, value in result["parts"].items())
    if found := result.get("chosen"):
        shares = ", ".join(f"{spec} {share:.1%}" for spec, share in found["shares"].items())
        yield f"{name}: chosen were {shares}; {found['spent']:.2f} of the dearest's FLOPs to the first token were spent"
    if result["missing"]:
        yield f"{name}: {result['missing']} questions were not asked, counted as wrong: {result['first_missing']}, …"


def retained(result: Result, full: Mapping[str, Result], floor: Mapping[str, Result] | None) -> float | None:
    """(score - floor) / (full - floor), where that says something; without `floor`, the share of full's score."""
    name = result["benchmark"]
    score, best = result["score"], full[name]["score"] if name in full else None
    least = 0.0 if floor is None else floor[name]["score"] if name in floor else None
    if score is None or best is None or least is None or best <= least:
        return None
    return (score - least) / (best - least)


def mean_of_paper(results: Sequence[Result], full: Mapping[str, Result], floor: Mapping[str, Result]) -> str:
    """Of all that are there, each over its full marks: MME's points of perception are divided by 2,000."""
    scored = {one["benchmark"]: one for one in results if one["score"] is not None}
    names = [next((name for name in names if name in scored), None) for names in PAPER]
    found = [scored[name] for name in names if name]
    if not found:
        return "None of the paper's twelve benchmarks has a score."
    lacking = [names[0] for names, name in zip(PAPER, names, strict=True) if name is None]
    instead = [
        f"{name} for {usual[0]}" for usual, name in zip(PAPER, names, strict=True) if name not in (None, usual[0])
    ]
    notes = [f"without {', '.join(lacking)}"] if lacking else []
    notes += [f"with {', '.join(instead)}"] if instead else []
    said = f"mean of {len(found)} of the paper's 12 benchmarks, normalised: {_mean(map(_normalised, found)):.2%}"
    said += f" ({'; '.join(notes)})" if notes else ""
    if both := [one for one in found if retained(one, full, None) is not None]:
        theirs = _mean(_normalised(full[one["benchmark"]]) for one in both)
        said += f"; {_mean(map(_normalised, both)) / theirs:.1%} of full's, of {len(both)}"
    if above := [share for one in found if (share := retained(one, full, floor)) is not None]:
        said += f"; {_mean(above):.1%} above the floor, the mean of {len(above)}"
    return said


def _normalised(result: Result) -> float:
    return result["score"] / result["full_marks"]


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / len(given)


def conditions(results: Sequence[Result]) -> list[str]:
    """What benchmarks were asked under: one line, where that is the same for all."""
    of_line: dict[str, list[str]] = {}
    for one in results:
        of_line.setdefault(_condition(one["settings"]), []).append(one["benchmark"])
    if len(of_line) == 1:
        return list(of_line)
    return [f"{', '.join(names)}: {line}" for line, names in of_line.items()]


def _condition(settings: Mapping[str, Any]) -> str:
    blind = "" if settings["with_images"] else ", without images"
    return (
        f"{settings['model']} (files {settings['model_files']}), {settings['compression']}{blind}; "
        f"{settings['template']}, {settings['aspect']}, {settings['dtype']}, {settings['decoding']['method']}, batches "
        f"of {settings['batch_size']}; {settings['devices']} x {settings['device']}; "
        f"victor_jax {settings['revision']}, jax {settings['versions']['jax']}"
    )
