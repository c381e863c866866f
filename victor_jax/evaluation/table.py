"""What several benchmarks say together: one table, the paper's mean, and what a method kept of the full model."""

from collections.abc import Mapping, Sequence
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


def as_table(results: Sequence[Result], full: Mapping[str, Result], floor: Mapping[str, Result]) -> str:
    """Markdown. `full`: of the model with all visual tokens; `floor`: of that one without images."""
    head = ["benchmark", "score", "unit", "questions", "missing", "new tokens", "OCR", "questions' digest"]
    head += (["of full"] if full else []) + (["above floor"] if full and floor else [])
    lines = [head, *(_cells(one, full, floor)[: len(head)] for one in results)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))
    return f"{table}\n\n{mean_of_paper(results)}\n{conditions(results[0])}"


def _cells(result: Result, full: Mapping[str, Result], floor: Mapping[str, Result]) -> list[str]:
    settings, name = result["settings"], result["benchmark"]
    score = "not scored here" if result["score"] is None else f"{result['score']:.2f}"
    return [
        name,
        score,
        result["unit"],
        str(result["questions"]),
        str(result["missing"]),
        str(settings["decoding"]["max_new_tokens"]),
        "yes" if settings["ocr"] else "no",
        settings["questions_sha256"][:12],
        _share(result.get("score"), _score(full, name), 0.0),
        _share(result.get("score"), _score(full, name), _score(floor, name)),
    ]


def _score(results: Mapping[str, Result], name: str) -> float | None:
    return results[name]["score"] if name in results else None


def _share(score: float | None, full: float | None, floor: float | None) -> str:
    """(score - floor) / (full - floor), where that says something."""
    if score is None or full is None or floor is None or full <= floor:
        return "-"
    return f"{(score - floor) / (full - floor):.1%}"


def mean_of_paper(results: Sequence[Result]) -> str:
    """Of all that are there, each over its full marks: MME's points of perception are divided by 2,000."""
    scored = {one["benchmark"]: one for one in results if one["score"] is not None}
    found = [next((name for name in names if name in scored), None) for names in PAPER]
    shares = [scored[name]["score"] / scored[name]["full_marks"] for name in found if name]
    if not shares:
        return "None of the paper's twelve benchmarks has a score."
    lacking = [names[0] for names, name in zip(PAPER, found, strict=True) if name is None]
    instead = [
        f"{name} for {names[0]}" for names, name in zip(PAPER, found, strict=True) if name not in (None, names[0])
    ]
    whole = f"mean of {len(shares)} of the paper's 12 benchmarks, normalised: {sum(shares) / len(shares):.2%}"
    notes = [f"without {', '.join(lacking)}"] if lacking else []
    notes += [f"with {', '.join(instead)}"] if instead else []
    return f"{whole} ({'; '.join(notes)})" if notes else whole


def conditions(result: Result) -> str:
    """What is the same for all benchmarks of a run."""
    settings = result["settings"]
    blind = "" if settings["with_images"] else ", without images"
    return (
        f"{settings['model']} (files {settings['model_files']}), {settings['compression']}{blind}; "
        f"{settings['template']}, {settings['aspect']}, {settings['dtype']}, {settings['decoding']['method']}, batches "
        f"of {settings['batch_size']}; {settings['devices']} x {settings['device']}; "
        f"victor_jax {settings['revision']}, jax {settings['versions']['jax']}"
    )
