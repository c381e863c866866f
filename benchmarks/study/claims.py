"""The claims: what each says, who says it, what is measured for it, and the verdict that the results give.

A claim holds where the 95 % interval of its effect lies wholly on the claim's side of a threshold, does not hold where
it lies wholly on the other side, and is not decided where the threshold lies in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.study.effects import Effect, gain, kept, loss, right, saved
from benchmarks.study.grid import LAYERS, K
from benchmarks.study.records import Estimate, Results

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "not decided", "not measured"


@dataclass(frozen=True)
class Claim:
    name: str
    says: str
    elsewhere: str  # what the paper (arXiv 2410.14072) or another finds
    effect: Effect
    side: Literal[">", "<"]
    threshold: float

    def verdict(self, results: Results) -> tuple[str, Estimate | None]:
        found = self.effect.estimate(results)
        if found is None:
            return MISSING, None
        sign = 1 if self.side == ">" else -1
        least, most = sorted(sign * (end - self.threshold) for end in (found.low, found.high))
        return (HOLDS if least > 0 else FAILS if most <= 0 else OPEN), found


POINT = 0.01  # of accuracy: the least difference that is worth a claim
STEPS = (1, 2, 3)  # of questions
VICTOR = f"victor-8-k{K}"


def listed() -> Iterator[Claim]:
    yield Claim("task", "the full model learns questions of two steps", "", right("full", 2), ">", 0.9)
    yield Claim("victor-8", f"8 registers, k = {K}, lose little", "< 4 %", loss(VICTOR), "<", 0.04)

    for k in LAYERS:
        effect = gain(f"victor-8-k{k}", f"vtw-k{k}")
        yield Claim(f"beats-none-k{k}", f"8 registers beat none, k = {k}", "not compared", effect, ">", POINT)
    for rival, what, paper in (
        ("last-8", "the last 8 visual tokens", "large drop of those"),
        ("random-8", "8 visual tokens at random places", ""),
        ("windows-8", "the means of 8 windows", "not compared"),
        ("perceiver", "a Perceiver resampler of equal compute", "resampler loses 10 %"),
        ("mqt", "a query transformer of equal compute", ""),
    ):
        yield Claim(f"beats-{rival}", f"8 registers beat {what}", paper, gain(VICTOR, rival), ">", POINT)

    for k in (1, 2):
        yield Claim(f"k{k}", f"k = {k} is too small", "substantial drop", loss(f"victor-8-k{k}"), ">", 0.05)
    for k in (3, 5):
        yield Claim(f"k{k}", f"k = {k} is enough", "within 5 %", loss(f"victor-8-k{k}"), "<", 0.05)
    for start in ("zeros", "pooled"):
        effect = gain(VICTOR, f"{start}-8")
        yield Claim(f"start-{start}", f"drawn registers beat those that start as {start}", "yes", effect, ">", POINT)
    effect = gain(f"{VICTOR}-long-stage1", VICTOR)
    yield Claim("stage1", "a stage 1 of five times the length helps", "", effect, ">", POINT)
    yield Claim(
        "undropped", "without dropping, 8 registers add nothing", "+ 1 %", gain("undropped-8", "full"), "<", POINT
    )

    for m in (4, 8):
        effect = gain(f"victor-{m}-k{K}", f"victor-16-cut-to-{m}")
        yield Claim(f"fixed-{m}", f"{m} of 16 registers are worse than {m} trained", "clearly", effect, ">", POINT)
        effect = loss(f"elastic-16-as-{m}", of=f"victor-{m}-k{K}")
        yield Claim(f"elastic-{m}", f"{m} of 16 elastic ones lose little against {m} trained", "", effect, "<", 0.04)

    for k in LAYERS:
        effect = kept(f"untrained-vtw-k{k}")
        yield Claim(f"untrained-k{k}", f"VTW without training keeps less than half, k = {k}", "", effect, "<", 0.5)
    for k in LAYERS:
        if within := tuple(steps for steps in STEPS if steps <= k):
            says = f"trained VTW, k = {k}, loses little where a question has no more steps than k"
            yield Claim(f"vtw-within-k{k}", says, "", loss(f"vtw-k{k}", *within), "<", 0.04)
        if beyond := tuple(steps for steps in STEPS if steps > k):
            says = f"trained VTW, k = {k}, loses where a question has more steps than k"
            yield Claim(f"vtw-beyond-k{k}", says, "", loss(f"vtw-k{k}", *beyond), ">", 0.04)

    says = "registers alone carry the image: text barred from it loses little"
    yield Claim("barred", says, "", loss("barred-8", of=VICTOR), "<", 0.04)
    for what in ("flops", "seconds"):
        says = f"training costs 43 % less {'FLOPs' if what == 'flops' else 'time'} at equal result"
        yield Claim(f"cost-{what}", says, "43 % less time", saved(VICTOR, what), ">", 0.43)


CLAIMS = tuple(listed())
