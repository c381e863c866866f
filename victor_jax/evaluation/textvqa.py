"""TextVQA (Singh et al., arXiv 1904.08920), val, with what an OCR system read in the prompt, as LLaVA asks it, or
without. Annotations: TextVQA_0.5.1_val.json.

The tokens are worth about twelve points to LLaVA-1.5-7B (58.2, and about 46 in lmms-eval, which leaves them out), so a
number says nothing without them.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path

from victor_jax.evaluation import vqa
from victor_jax.evaluation.answers import Answer, Scorer
from victor_jax.evaluation.benchmark import Benchmark, Question, read_pictured

TOKENS = "Reference OCR token:"


def read_truth(annotations: Path, questions: Path | None) -> dict[Hashable, vqa.References]:
    rows = vqa.read_rows(annotations, "data", "image_id", "question", "answers")
    return {(row["image_id"], row["question"].lower()): vqa.References(row["answers"]) for row in rows}


def key(answer: Answer, truth: Mapping[Hashable, vqa.References]) -> Hashable:
    """The id is the image's; the question is the line of the prompt that is neither OCR tokens nor the request."""
    lines = answer.prompt.split("\n")
    tokens_first = lines[0].startswith(TOKENS) and len(lines) > 1
    return answer.id, lines[1 if tokens_first else 0].lower()


def read_without_tokens(file: Path) -> list[Question]:
    return [replace(question, text=without_tokens(question.text)) for question in read_pictured(file)]


def without_tokens(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not line.startswith(TOKENS))


TEXTVQA = Benchmark(
    name="textvqa",
    folder="textvqa",
    questions="llava_textvqa_val_v051_ocr.jsonl",
    images="train_images",
    annotations="TextVQA_0.5.1_val.json",
    max_new_tokens=128,
    read=read_pictured,
    score=Scorer(read_truth, vqa.rate, key),
    ocr=True,
)
TEXTVQA_NO_OCR = replace(TEXTVQA, name="textvqa-no-ocr", read=read_without_tokens, ocr=False)
