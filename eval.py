"""Evaluates a model: python eval.py --model=DIR --benchmark=digits --questions=FILE --images=DIR --out=DIR

The same command goes on where it stopped, on any number of devices and hosts. OUT/answers.jsonl holds every prompt and
answer, OUT/result.json the score with the settings that it was measured under.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

import victor_jax
from victor_jax.compile_cache import use_compile_cache
from victor_jax.errors import exit_status, stop
from victor_jax.evaluation import BENCHMARKS
from victor_jax.evaluation.runner import open_task, report, run
from victor_jax.files import writing
from victor_jax.sharding import distributed


def main(given: argparse.Namespace) -> None:
    is_first = jax.process_index() == 0
    task = open_task(
        BENCHMARKS[given.benchmark],
        given.questions,
        given.images,
        blind=given.blind,
        batch_size=given.batch_size,
        max_new_tokens=given.max_new_tokens,
    )
    use_compile_cache()
    if is_first:
        print(f"{len(task.questions)} questions; reading {given.model}", flush=True)
    vlm = victor_jax.load(given.model, given.compression, given.dtype, attention=given.attention)
    with writing(Path(given.out)):
        result = run(vlm, task, given.out, model=given.model)
    if is_first:
        print(f"{report(result)}\nanswers and settings are in {given.out}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python eval.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a checkpoint folder of any known format, with its tokenizer")
    parser.add_argument("--benchmark", required=True, choices=sorted(BENCHMARKS))
    parser.add_argument("--questions", required=True, metavar="FILE")
    parser.add_argument("--images", metavar="DIR", help="the folder that the questions' images are in")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--compression", help="instead of the one that the model was trained with")
    parser.add_argument("--blind", action="store_true", help="ask without the images: the floor of a score")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, help="instead of the benchmark's own")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where several are not found")
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process-id", "--process_id", type=int, help="which of them this is, from 0")
    return parser.parse_args(arguments)


def command_line() -> int:
    """The exit status: a user's mistake is one line on stderr, and 2."""
    given = parse()

    def command() -> None:
        with distributed.joined(given.coordinator, given.processes, given.process_id):
            # Among several processes jax would keep it for a training loop to ask.
            signal.signal(signal.SIGTERM, lambda *_: stop(signal.SIGINT))
            main(given)

    return exit_status(command, interrupted="stopped: the same command goes on from here")


if __name__ == "__main__":
    sys.exit(command_line())
