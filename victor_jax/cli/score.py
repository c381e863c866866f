"""victor-jax score BENCHMARK --predictions=FILE --annotations=PATH [--questions=FILE]: a score, without a model.

Predictions are JSON lines with question_id and text, as eval.py and LLaVA's scripts write them (TextVQA and MME also
read prompt). Annotations are what the benchmark publishes, as it is.
"""

import argparse
from pathlib import Path

from victor_jax.errors import UserError
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.answers import Score, read_answers

SCORERS = {name: benchmark.score for name, benchmark in BENCHMARKS.items() if benchmark.score}
NAMED = 5  # of the questions without a prediction


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="victor-jax score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("benchmark", choices=SCORERS)
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--annotations", required=True, type=Path, metavar="PATH", help="a file, or of POPE, MME, "
                        "ScienceQA and MMMU a folder; of LLaVA-Bench and MM-Vet what the judge said")  # fmt: skip
    parser.add_argument("--questions", type=Path, metavar="FILE", help="the question file, which POPE and MM-Vet need")
    given = parser.parse_args(arguments)
    print(report(scored(given.benchmark, given.predictions, given.annotations, given.questions)))
    return 0


def scored(benchmark: str, predictions: Path, annotations: Path, questions: Path | None) -> Score:
    answers = read_answers(predictions)
    try:
        return SCORERS[benchmark](answers, annotations, questions)
    except (KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:  # of a damaged file
        raise UserError(
            f"{annotations} is not what {benchmark} publishes ({type(error).__name__}: {error}): download it again"
        ) from error


def report(score: Score) -> str:
    """For people."""
    unit = " %" if score.unit == "%" else f" {score.unit}"
    width = max(map(len, ["score", *score.parts]))
    lines = [f"{name:<{width}}  {value:8.2f}{unit}" for name, value in {"score": score.score, **score.parts}.items()]
    lines.append(f"{score.questions} questions")
    if score.missing:
        first = ", ".join(map(repr, score.missing[:NAMED]))
        more = ", …" if len(score.missing) > NAMED else ""
        lines[-1] += f", {len(score.missing)} without a prediction, counted as wrong: {first}{more}"
    return "\n".join(lines)
