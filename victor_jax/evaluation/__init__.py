"""Benchmarks: one file each, which says how its files are read, and answers scored and submitted; the runner does the
rest."""

from victor_jax.evaluation.benchmark import Benchmark
from victor_jax.evaluation.digits import DIGITS
from victor_jax.evaluation.gqa import GQA
from victor_jax.evaluation.llava_wild import LLAVA_W
from victor_jax.evaluation.mm_vet import MM_VET
from victor_jax.evaluation.mmbench import MMBENCH, MMBENCH_CN
from victor_jax.evaluation.mme import MME
from victor_jax.evaluation.mmmu import MMMU
from victor_jax.evaluation.pope import POPE
from victor_jax.evaluation.scienceqa import SCIENCEQA
from victor_jax.evaluation.seed_bench import SEED_BENCH
from victor_jax.evaluation.textvqa import TEXTVQA, TEXTVQA_NO_OCR
from victor_jax.evaluation.vizwiz import VIZWIZ, VIZWIZ_VAL
from victor_jax.evaluation.vqav2 import VQAV2, VQAV2_VAL

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        VQAV2,
        VQAV2_VAL,
        GQA,
        VIZWIZ,
        VIZWIZ_VAL,
        SCIENCEQA,
        TEXTVQA,
        TEXTVQA_NO_OCR,
        POPE,
        MME,
        MMBENCH,
        MMBENCH_CN,
        SEED_BENCH,
        LLAVA_W,
        MM_VET,
        MMMU,
        DIGITS,
    )
}
