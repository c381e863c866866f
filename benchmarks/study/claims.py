"""The claims: what each says, who says it, what is measured for it, and the verdict that the results give.

A claim holds where the 95 % interval of its effect lies wholly on the claim's side of a threshold, does not hold where
it lies wholly on the other side, and is not decided where the threshold lies in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from benchmarks.study.effects import Effect, gain, kept, loss, right, saved, spent
from benchmarks.study.grid import CONTROLS, LAYERS, LLAVA, K, at, from_scratch
from benchmarks.study.records import Estimate, Results

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "not decided", "not measured"


@dataclass(frozen=True)
class Claim:
    name: str
    says: str
    paper: str  # what Victor's (arXiv 2410.14072) finds, or another
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
OURS = "never asked"


def steps_within(k: int) -> tuple[int, ...]:
    return tuple(steps for steps in STEPS if steps <= k)


def steps_beyond(k: int) -> tuple[int, ...]:
    return tuple(steps for steps in STEPS if steps > k)


def note(k: int) -> str:
    """The layer, where it is not the paper's."""
    return "" if k == K else f", k = {k}"


def of_registers() -> Iterator[Claim]:
    """Whether registers keep what matters, and what others in their place would."""
    yield Claim("learnt", "full learns questions of two steps", "none", right("full", 2), ">", 0.9)
    yield Claim("victor-8", "8 registers lose little", "< 4 %", loss(VICTOR), "<", 0.04)
    for k in LAYERS:
        one, other = f"victor-8-k{k}", f"vtw-k{k}"
        yield Claim(f"none-k{k}", f"8 registers beat none, k = {k}", OURS, gain(one, other), ">", POINT)
    for k in LAYERS:
        if beyond := steps_beyond(k):
            says, effect = (
                f"… where questions have more steps than k = {k}",
                gain(f"victor-8-k{k}", f"vtw-k{k}", *beyond),
            )
            yield Claim(f"none-beyond-k{k}", says, OURS, effect, ">", POINT)
    for k in LAYERS[: LAYERS.index(K)]:
        says, effect = (
            f"8 registers beat none a layer later, for about equal compute, k = {k}",
            gain(f"victor-8-k{k}", f"vtw-k{k + 1}"),
        )
        yield Claim(f"none-later-k{k}", says, OURS, effect, ">", POINT)
    for k in CONTROLS:
        for rival, what, paper in (
            ("last-8", "the last 8 visual tokens", "those lose much"),
            ("random-8", "8 visual tokens at random places", OURS),
            ("windows-8", "the means of 8 windows", OURS),
        ):
            says, effect = f"8 registers beat {what}{note(k)}", gain(f"victor-8-k{k}", at(rival, k))
            yield Claim(at(rival, k), says, paper, effect, ">", POINT)
    for rival, what, paper in (
        ("perceiver", "a Perceiver resampler of equal compute, after as short a training", "that one loses 10 %"),
        ("mqt", "a query transformer of equal compute, after as short a training", OURS),
    ):
        yield Claim(rival, f"8 registers beat {what}", paper, gain(VICTOR, rival), ">", POINT)
    says = "text that sees the image through registers alone loses little"
    yield Claim("barred", says, OURS, loss("barred-8", of=VICTOR), "<", 0.04)


def of_layers() -> Iterator[Claim]:
    """Where the visual tokens may leave."""
    for k in LAYERS[: LAYERS.index(K)]:
        yield Claim(f"k{k}", f"k = {k} is too small", "a substantial drop", loss(f"victor-8-k{k}"), ">", 0.05)
    for k in LAYERS[LAYERS.index(K) :]:
        yield Claim(f"k{k}", f"k = {k} is enough", "within 5 %", loss(f"victor-8-k{k}"), "<", 0.05)
    for k in LAYERS:
        says, effect = f"VTW keeps less than half without training, k = {k}", kept(f"untrained-vtw-k{k}")
        yield Claim(f"vtw-untrained-k{k}", says, "nothing lost at 16 of 32 layers (2405.05803)", effect, "<", 0.5)
    for k in LAYERS:
        if within := steps_within(k):
            says = f"trained, it loses little on questions of at most k = {k} steps"
            yield Claim(f"vtw-within-k{k}", says, OURS, loss(f"vtw-k{k}", *within), "<", 0.04)
        if beyond := steps_beyond(k):
            says = f"trained, it loses on questions of more than k = {k} steps"
            yield Claim(f"vtw-beyond-k{k}", says, OURS, loss(f"vtw-k{k}", *beyond), ">", 0.04)


def of_training() -> Iterator[Claim]:
    """How registers are trained, whether their number can change, and what training costs."""
    for k, m in product(CONTROLS, (4, 8)):
        trained = f"victor-{m}-k{k}"
        says, effect = f"{m} of 16 registers are worse than {m} trained", gain(trained, at(f"victor-16-cut-to-{m}", k))
        yield Claim(at(f"cut-{m}", k), says + note(k), "clearly worse", effect, ">", POINT)
        says, effect = (
            f"{m} of 16 elastic registers lose little against {m} trained",
            loss(at(f"elastic-16-as-{m}", k), of=trained),
        )
        yield Claim(at(f"elastic-{m}", k), says + note(k), OURS, effect, "<", 0.04)
    undropped = gain("undropped-8", "full")
    yield Claim("undropped", "8 registers beside tokens that stay add nothing", "+ 1 %", undropped, "<", POINT)
    for k, start in product(CONTROLS, ("zeros", "pooled")):
        says, effect = f"registers that start as {start} are worse", gain(f"victor-8-k{k}", at(f"{start}-8", k))
        yield Claim(at(start, k), says + note(k), "worse at few", effect, ">", POINT)
    effect = gain(f"{VICTOR}-long-stage1", VICTOR)
    yield Claim("stage1", "a stage 1 of ten times the length helps", OURS, effect, ">", POINT)
    for what, says in (("flops", "FLOPs"), ("seconds", "time")):
        effect = saved(from_scratch(VICTOR), LLAVA, what)
        yield Claim(f"cost-{what}", f"training takes 43 % less {says}", "43 % less time", effect, ">", 0.43)


def of_vision_on_request() -> Iterator[Claim]:
    """Tokens that stay beside the text or leave when a gate says so (2603.23495, 2411.19628)."""
    for rival in (VICTOR, f"vtw-k{K}"):
        says = f"VISOR, trained 2.5 times as long, beats {rival}, which takes as much compute to answer or more"
        yield Claim(f"visor-{rival}", says, OURS, gain("visor", rival), ">", POINT)
    says = "self-attention layers help VISOR on questions of more steps"
    yield Claim("visor-self", says, "+ 6.6 points on hard tasks", gain("visor", "visor-as-0-2", 2, 3), ">", POINT)
    says = "one network for all budgets loses little against one for each"
    yield Claim("visor-one", says, "none given", loss("visor-as-0-2", of="visor-0-2"), "<", 0.04)
    for name, largest, paper in (("visor-policy", "visor", "within 1 %"), ("dyvte", "full", "nothing lost")):
        says = f"{name} loses little against {largest}"
        yield Claim(f"{name}-keeps", says, paper, loss(name, of=largest), "<", 0.04)
        says = f"{name} spends less than 0.8 of the FLOPs of {largest}"
        yield Claim(f"{name}-spends", says, "none given", spent(name, largest), "<", 0.8)
    says = "four exits lose little against DyVTE's rule at every layer"
    yield Claim("dyvte-exits-keep", says, OURS, loss("dyvte", of="dyvte-exact"), "<", 0.04)
    says = "four exits spend less than 1.1 of the FLOPs of the rule at every layer"
    yield Claim("dyvte-exits-spend", says, OURS, spent("dyvte", "dyvte-exact"), "<", 1.1)


CLAIMS = (*of_registers(), *of_layers(), *of_training(), *of_vision_on_request())
