"""Benchmarks: one file each, which says how a question is asked and an answer judged; the runner does the rest."""

from victor_jax.evaluation.benchmark import Benchmark
from victor_jax.evaluation.digits import DIGITS

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (DIGITS,)}
