"""python tests/lmms_eval_agreement.py, in an environment with lmms-eval: it gives the answers and scores of eval.py.

A tiny model of random weights, the quickstart's questions on its test images, half of them with the model's own words
for an answer; both classes, generation and multiple choice, at other batch sizes than eval.py's. All of it is on disk.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import talking
from datasets import load_from_disk

import victor_jax
from examples.lmms_eval_task.dataset import write
from examples.quickstart.digits import Task, write_digits
from victor_jax.ops.losses import IGNORE

ROOT = Path(__file__).parents[1]
TASK = Task(train=8, described=4, test=12)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
MODEL_ARGS = "pretrained=model,dtype=float32,compression='victor:registers=3,layer=2'"
CLOSE = 1e-5  # of losses, relative


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


def write_all(folder: Path) -> None:
    """A model, questions, and the questions as lmms-eval reads them."""
    digits = write_digits(folder / "canvases", TASK)
    vlm = victor_jax.load(talking.saved(folder / "model", "victor:registers=3,layer=2"), dtype="float32")
    rows = [json.loads(line) for line in (digits / "questions.jsonl").read_text().splitlines()]
    said = vlm.generate([row["text"] for row in rows], [digits / "test" / row["image"] for row in rows], 8)
    for row, text in list(zip(rows, said, strict=True))[::2]:
        row["answer"] = text or row["answer"]
    (digits / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(digits / "questions.jsonl", digits / "test", folder / "digits-data")
    (folder / "task").symlink_to(ROOT / "examples" / "lmms_eval_task")


def own_losses(folder: Path) -> list[list[float]]:
    """The mean loss of each choice of each question."""
    vlm = victor_jax.load(folder / "model", dtype="float32")
    found = []
    for doc in load_from_disk(folder / "digits-data")["test"]:
        prompts, images = [doc["text"]] * len(doc["choices"]), [doc["image"]] * len(doc["choices"])
        lengths = [(row.targets != IGNORE).sum() for row in vlm.prompter.answer(prompts, images, doc["choices"])]
        found.append((-vlm.score(prompts, images, doc["choices"]) / np.array(lengths)).tolist())
    return found


def count(name: str, same: list[bool]) -> bool:
    print(f"{name}: {sum(same)} of {len(same)} the same")
    return all(same)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder)
        run([str(ROOT / "eval.py"), "--model=model", "--benchmark=digits", "--questions=canvases/questions.jsonl",
             "--images=canvases/test", "--out=ours", "--dtype=float32"], folder)  # fmt: skip
        ours = [json.loads(line) for line in (folder / "ours" / "answers.jsonl").read_text().splitlines()]
        chat = lmms_eval(folder, "chat", "--tasks", "digits", "--batch_size", "7")
        simple = lmms_eval(
            folder, "simple", "--force_simple", "--tasks", "digits,digits_choice", "--batch_size", "auto"
        )
        wanted = own_losses(folder)
        docs = load_from_disk(folder / "digits-data")["test"]
        right = [
            int(np.argmin(row)) == doc["choices"].index(doc["answer"]) for row, doc in zip(wanted, docs, strict=True)
        ]
    share = sum(row["correct"] for row in ours) / len(ours)
    texts = {row["text"] for row in ours}
    print(f"\neval.py: {len(ours)} answers, {len(texts)} different ones, {share:.1%} right")
    chosen = simple["digits_choice"]
    losses = [[float(loss) for loss, _ in row["filtered_resps"]] for row in chosen]
    pairs = [(float(a), b) for one, other in zip(losses, wanted, strict=True) for a, b in zip(one, other, strict=True)]
    agree = [
        count(f"{kind}, {what}", [theirs(row) == one[what] for row, one in zip(samples["digits"], ours, strict=True)])
        for kind, samples in (("chat", chat), ("simple", simple))
        for what, theirs in (("text", lambda row: row["filtered_resps"]), ("correct", lambda row: row["exact"]))
    ]
    agree.append(count("multiple choice, losses", [bool(np.isclose(a, b, rtol=CLOSE)) for a, b in pairs]))
    agree.append(count("multiple choice, correct", [row["acc"] == one for row, one in zip(chosen, right, strict=True)]))
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
