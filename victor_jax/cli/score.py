"""victor-jax score BENCHMARK --predictions=FILE --annotations=PATH [--questions=FILE]: a score, without a model.

Predictions are JSON lines with question_id and text, as eval.py and LLaVA's scripts write them (TextVQA and MME also
read prompt). Annotations are what the benchmark publishes, as it is.
"""

import argparse
from pathlib import Path

from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import Score, read_answers
from victor_jax.evaluation.benchmark import score

NAMED = 5  # of the questions without a prediction


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="victor-jax score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = [name for name, benchmark in BENCHMARKS.items() if benchmark.score]
    parser.add_argument("benchmark", choices=names)
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--annotations", required=True, type=Path, metavar="PATH", help="a file, or of POPE, MME, "
                        "ScienceQA and MMMU a folder; of LLaVA-Bench and MM-Vet what the judge said")  # fmt: skip
    parser.add_argument("--questions", type=Path, metavar="FILE", help="the question file, which POPE and MM-Vet need")
    given = parser.parse_args(arguments)
    answers = read_answers(given.predictions)
    print(report(score(BENCHMARKS[given.benchmark], answers, given.annotations, given.questions)))
    return 0


def report(found: Score) -> str:
    """For people."""
    unit = " %" if found.unit == "%" else f" {found.unit}"
    width = max(map(len, ["score", *found.parts]))
    lines = [f"{name:<{width}}  {value:8.2f}{unit}" for name, value in {"score": found.score, **found.parts}.items()]
    lines.append(f"{found.questions} questions")
    if found.missing:
        first = ", ".join(map(repr, found.missing[:NAMED]))
        more = ", …" if len(found.missing) > NAMED else ""
        lines[-1] += f", {len(found.missing)} without a prediction, counted as wrong: {first}{more}"
    return "\n".join(lines)
