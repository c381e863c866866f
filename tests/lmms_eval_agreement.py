"""python tests/lmms_eval_agreement.py, in an environment with lmms-eval: it gives the answers and scores of eval.py.

A tiny model of random weights, the quickstart's questions on its test images, half of them with the model's own words
for an answer; both classes, generation and multiple choice, at other batch sizes than eval.py's. All of it is on disk.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import talking
from datasets import load_from_disk

import victor_jax
from examples.lmms_eval_task.dataset import write
from examples.quickstart.digits import Task, write_digits
from victor_jax.evaluation.digits import is_right
from victor_jax.inference.sampling import Sampling
from victor_jax.inference.vlm import VLM
from victor_jax.ops.losses import IGNORE

ROOT = Path(__file__).parents[1]
TASK = Task(train=8, described=4, test=12)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
MODEL_ARGS = "pretrained=model,dtype=float32,compression='victor:registers=3,layer=2'"
CLOSE = 1e-4  # of losses of about 5


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env={**os.environ, **OFFLINE}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}")
    return done.stdout


def lmms_eval(folder: Path, name: str, *flags: str) -> dict[str, list[dict[str, Any]]]:
    """Its samples by task, in the order of the questions."""
    command = ["-m", "lmms_eval", "--model", "victor_jax", "--model_args", MODEL_ARGS, "--include_path", "task", *flags]
    print("\npython " + " ".join(command), flush=True)
    said = run([*command, "--log_samples", "--output_path", name], folder)
    print("\n".join(line for line in said.splitlines() if line.startswith("|")))
    samples = {}
    for file in (folder / name).rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[file.stem.partition("_samples_")[2]] = sorted(rows, key=lambda row: row["doc_id"])
    if not samples:
        raise SystemExit(said)
    return samples


def write_all(folder: Path) -> tuple[VLM, list[dict[str, Any]]]:
    """A model, questions, and the questions as lmms-eval reads them."""
    digits = write_digits(folder / "canvases", TASK) / "digits"
    vlm = victor_jax.load(talking.saved(folder / "model", "victor:registers=3,layer=2"), dtype="float32")
    rows = [json.loads(line) for line in (digits / "questions.jsonl").read_text().splitlines()]
    said = vlm.generate([row["text"] for row in rows], [digits / "images" / row["image"] for row in rows], 8)
    for row, text in list(zip(rows, said, strict=True))[::2]:
        row["answer"] = text or row["answer"]
    (digits / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(digits, folder / "digits-data")
    (folder / "task").symlink_to(ROOT / "examples" / "lmms_eval_task")
    return vlm, list(load_from_disk(folder / "digits-data")["test"])


def own_losses(vlm: VLM, doc: dict[str, Any]) -> list[float]:
    """The mean loss of each choice of a question."""
    prompts, images = [doc["text"]] * len(doc["choices"]), [doc["image"]] * len(doc["choices"])
    lengths = [(row.targets != IGNORE).sum() for row in vlm.prompter.answer(prompts, images, doc["choices"])]
    return (-vlm.score(prompts, images, doc["choices"]) / np.array(lengths)).tolist()


def count(name: str, theirs: Iterable[Any], ours: Iterable[Any]) -> bool:
    same = [a == b for a, b in zip(theirs, ours, strict=True)]
    print(f"{name}: {sum(same)} of {len(same)} the same")
    return all(same)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vlm, docs = write_all(folder)
        run([str(ROOT / "eval.py"), "--model=model", "--benchmark=digits", "--data=canvases", "--out=ours",
             "--dtype=float32"], folder)  # fmt: skip
        lines = (folder / "ours" / "digits" / "answers.jsonl").read_text().splitlines()
        ours = [json.loads(line)["text"] for line in lines]
        score = json.loads((folder / "ours" / "digits" / "result.json").read_text())["score"]
        chat = lmms_eval(folder, "chat", "--tasks", "digits", "--batch_size", "7")["digits"]
        every = ("--force_simple", "--tasks", "digits,digits_choice", "--batch_size", "auto")
        simple = lmms_eval(folder, "simple", *every)
        drawing = ("--gen_kwargs", "temperature=0.8,top_p=0.9,until=e")
        drawn = lmms_eval(folder, "drawn", "--tasks", "digits", "--batch_size", "7", *drawing)["digits"]
    prompts, images = [doc["text"] for doc in docs], [doc["image"] for doc in docs]
    drawn_here = vlm.generate(prompts, images, 8, sampling=Sampling(0.8, 0.9), stop=("e",))
    print(f"\neval.py: {len(ours)} answers, {len(set(ours))} different ones, score {score:.1f} %")
    right = [is_right(text, doc["answer"]) for text, doc in zip(ours, docs, strict=True)]
    agree = []
    for kind, rows in (("chat", chat), ("simple", simple["digits"])):
        agree.append(count(f"{kind} class, answers", [row["filtered_resps"] for row in rows], ours))
        agree.append(count(f"{kind} class, judged right", [row["exact"] for row in rows], right))
    agree.append(count("chat class, drawn answers", [row["filtered_resps"] for row in drawn], drawn_here))
    losses = [own_losses(vlm, doc) for doc in docs]
    theirs = [[float(loss) for loss, _ in row["filtered_resps"]] for row in simple["digits_choice"]]
    furthest = max(
        abs(a - b) for one, other in zip(theirs, losses, strict=True) for a, b in zip(one, other, strict=True)
    )
    print(f"multiple choice: {sum(map(len, losses))} mean losses, at most {furthest:.1e} from VLM.score's")
    agree.append(furthest < CLOSE)
    chosen = [doc["choices"][int(np.argmin(of_doc))] == doc["answer"] for doc, of_doc in zip(docs, losses, strict=True)]
    agree.append(count("multiple choice, judged right", [row["acc"] for row in simple["digits_choice"]], chosen))
    whole = vlm.generate(prompts, images, 40)  # more tokens than any choice has
    would = [[choice == text for choice in doc["choices"]] for text, doc in zip(whole, docs, strict=True)]
    said = [[greedy in (True, "True") for _, greedy in row["filtered_resps"]] for row in simple["digits_choice"]]
    agree.append(count("multiple choice, what the model says by itself", said, would))
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
