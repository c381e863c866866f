"""Evaluates a model: python eval.py --model=DIR --benchmark=all --data=DIR --out=DIR

DATA holds a folder for each benchmark, as LLaVA's eval.zip does (docs/evaluation.md). The same command goes on where it
stopped, on any number of devices and hosts. OUT/NAME/answers.jsonl holds every prompt and answer, OUT/NAME/result.json
the score with the settings that it was measured under, OUT/table.md all scores.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from tqdm import tqdm

import victor_jax
from victor_jax.compile_cache import use_compile_cache
from victor_jax.errors import UserError, exit_status, stop
from victor_jax.evaluation.runner import answers_in, run
from victor_jax.evaluation.table import as_table, read_results
from victor_jax.evaluation.tasks import open_tasks
from victor_jax.files import write_whole, writing
from victor_jax.inference.vlm import outline
from victor_jax.sharding import distributed


def main(given: argparse.Namespace) -> None:
    is_first = jax.process_index() == 0
    tasks, absent = open_tasks(
        given.benchmark,
        given.data,
        blind=given.blind,
        batch_size=given.batch_size,
        max_new_tokens=given.max_new_tokens,
        limit=given.limit,
    )
    if given.floor and not given.full:
        raise UserError("--floor says what lies above it with --full, the results of the model with all visual tokens")
    full = read_results(given.full, tasks, "--full", with_images=True) if given.full else {}
    floor = read_results(given.floor, tasks, "--floor", with_images=False) if given.floor else {}
    options = given.model, given.compression, given.dtype
    vlm, _ = outline(*options, jax.local_devices()[0].platform, attention=given.attention)
    names, out, done = [task.benchmark.name for task in tasks], Path(given.out), 0
    total = sum(len(task.questions) for task in tasks)
    if is_first:
        done = sum(answers_in(vlm, task, out / task.benchmark.name) for task in tasks)
        print("".join(f"not found: {sentence}\n" for sentence in absent), end="")
        print(f"{', '.join(names)}: {total} questions, {total - done} to answer by {given.model}", flush=True)
    found, done = distributed.agreed([names, done])
    if found != names:
        raise UserError(f"it found other benchmarks in {given.data} than process 0")
    if done < total:
        use_compile_cache()
        vlm = victor_jax.load(*options, attention=given.attention)
    with writing(out), tqdm(total=total, initial=done, unit="question", disable=not is_first or done == total) as bar:
        results = [run(vlm, task, out / task.benchmark.name, given.model, bar) for task in tasks]
    if is_first:
        table = as_table(results, full, floor, out)
        with writing(out):
            write_whole(out / "table.md", f"{table}\n")
        print(f"{table}\nanswers and settings are in {out}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python eval.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a checkpoint folder of any known format, with its tokenizer")
    parser.add_argument(
        "--benchmark", required=True, metavar="NAMES", help="joined by commas; all: those that DATA has"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder of the benchmarks' folders")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--compression", help="instead of the one that the model was trained with")
    parser.add_argument("--blind", action="store_true", help="ask without the images: the floor of a score")
    parser.add_argument("--full", metavar="OUT", help="of the model with all visual tokens: to compare with")
    parser.add_argument("--floor", metavar="OUT", help="of that one without images: to compare what lies above it")
    parser.add_argument("--limit", type=int, help="the first so many questions of each benchmark")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, help="instead of the benchmarks' own")
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
