"""python -m examples.quickstart [--out=quickstart] [--seed=0]: the whole story on real images, in minutes.

Draws canvases of scanned digits, gives a tiny model sight, and then runs the same commands that the 7B recipe uses:
train.py (both stages) for a LLaVA and for four methods that start from it, eval.py on digits that were never seen,
convert, heatmap. Each command is printed before it runs; everything is left in one folder. The same command goes on
where it was stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.quickstart.digits import Task, read_task, write_digits
from examples.quickstart.jobs import Job, Runner, begin, evaluation, train, training
from examples.quickstart.questions import KINDS
from examples.quickstart.report import READING, as_table, draw, read_rows
from victor_jax.errors import exit_status
from victor_jax.results import keep_settings

# All but `full` drop the 64 visual tokens after the same layer, of eight: three are enough for two looks at the image,
# whichever layers of the LLaVA looked before. After two it is luck whether a short training finds them.
METHODS = {
    "full": "full",
    "victor-3": "registers=3,layer=3",
    "victor-1": "registers=1,layer=3",
    "vtw": "vtw,layer=3",
}
AT_ONCE = 2  # trainings
LEARN, GO_ON = 1600, 250  # steps of stage 2: of the LLaVA, and of each method


def sight(out: Path) -> Job:
    command = ("-m", "examples.quickstart.sight", str(out / "data"), str(out / "start"))
    return Job("sight", command, out / "start")


def llava(out: Path) -> list[Job]:
    """Both stages with all visual tokens: what with a real model is already trained."""
    recipe = {"finetune": {"total_steps": LEARN, "optimizer.cosine": False}}  # what goes on from it lowers the rate
    return training("llava", "full", out / "data", out / "start", out / "llava", seed_of(out), recipe)


def going_on(out: Path, method: str) -> list[Job]:
    """Stage 2 from that model."""
    start, own = out / "llava" / "finetune" / "model", {"total_steps": GO_ON}
    folder = out / method / "finetune"
    return [train(method, "finetune", METHODS[method], out / "data", start, folder, seed_of(out), own)]


def seed_of(out: Path) -> int:
    return read_task(out / "data").seed


def asked(out: Path, method: str, blind: bool = False) -> Job:
    name = f"{method} asked {'without images' if blind else 'about unseen digits'}"
    folder, more = (out / method / "blind", ("--blind",)) if blind else (out / method / "eval", ())
    return evaluation(name, out / method / "finetune" / "model", out / "data", folder, *more)


def leftovers(out: Path) -> list[Job]:
    """The model in Hugging Face's layout, and what its registers read."""
    model, picture = out / "victor-3" / "finetune" / "model", out / "registers.png"
    lines = map(json.loads, (out / "data" / "digits" / "questions.jsonl").read_text().splitlines())
    question = next(line for line in lines if KINDS[line["category"]].steps == 2)
    image = out / "data" / "digits" / "images" / question["image"]
    look = (f"--model={model}", f"--image={image}", f"--out={picture}", f"--prompt={question['text']}")
    return [
        Job("export", ("-m", "victor_jax", "convert", str(model), str(out / "model-hf"), "--to=hf"), out / "model-hf"),
        Job("heat-map", ("-m", "victor_jax", "heatmap", *look), picture),
    ]


# --- the story ------------------------------------------------------------------------------------------------------

NEXT = """With a real checkpoint (README.md has the whole recipe):
  victor-jax convert llava-1.5-7b-hf llava-orbax --to=orbax      # any PyTorch LLaVA folder, equal to 1e-5
  python train.py --config=configs/finetune.py:registers=8,layer=3 --workdir=stage2 --config.init_from=…
  python eval.py --model=stage2/model --benchmark=all --data=… --out=answers"""


def tell(out: Path, seed: int) -> None:
    keep_settings({"methods": METHODS, "learn": LEARN, "go_on": GO_ON, "seed": seed}, out, out / "start")
    print("1. The data: scanned digits on canvases, questions about them, a tokenizer of their words.", flush=True)
    write_digits(out / "data", Task(seed=seed))
    print("2. Stage 0: a vision tower learns to see. With a real model, CLIP brings this.", flush=True)
    runner = Runner(out / "logs")
    runner.run([sight(out)])
    print("3. A LLaVA: stage 1 and stage 2 of the real recipe, with all visual tokens.", flush=True)
    runner.run(llava(out))
    print("4. Stage 2 from that checkpoint, for each method; `full` goes on with all tokens.", flush=True)
    runner.run(*(going_on(out, method) for method in METHODS), at_once=AT_ONCE)
    print("5. Questions about digits that no part of the model ever saw.", flush=True)
    print("   One after the other, so that their speed is that of a quiet machine.", flush=True)
    runner.run([asked(out, method) for method in METHODS])
    print("6. The same without images, the model in Hugging Face's layout, and what its registers read.", flush=True)
    runner.run(*([job] for job in (asked(out, "full", blind=True), *leftovers(out))), at_once=AT_ONCE)
    rows, floor = read_rows(out, list(METHODS))
    table = as_table(rows, floor)
    (out / "results.md").write_text(table + "\n")
    draw(rows, floor, out / "accuracy.png")
    print(f"\n{table}\n\n{READING}\n")
    for name, what in LEFT.items():
        print(f"  {out / name!s:<32} {what}")
    print(f"\n{NEXT}")


LEFT = {
    "results.md": "the table",
    "accuracy.png": "accuracy over compute",
    "registers.png": "what each register read",
    "model-hf": "the model with registers, in Hugging Face's layout",
    "logs": "what trainings and evaluations said",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    begin()
    return exit_status(lambda: tell(given.out, given.seed), interrupted="stopped: the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
