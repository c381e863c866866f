"""Benchmark -> how predictions of it are scored."""

from collections.abc import Callable, Sequence
from pathlib import Path

from victor_jax.evaluation import gqa, mme, pope, scienceqa, seed_bench, vqa
from victor_jax.evaluation.answers import Answer, Score

# (answers, annotations, LLaVA's question file, which only some need) -> Score
SCORERS: dict[str, Callable[[Sequence[Answer], Path, Path | None], Score]] = {
    "vqav2": vqa.score_vqav2,
    "gqa": gqa.score,
    "vizwiz": vqa.score_vizwiz,
    "textvqa": vqa.score_textvqa,
    "scienceqa": scienceqa.score,
    "pope": pope.score,
    "mme": mme.score,
    "seed-bench": seed_bench.score,
}
