"""What is measured: sizes of the task, and at each size points, which are a training and how its model is asked.

A point is measured once for each seed. Points that share a training share its two stages, and differ in how eval.py
asks the model.
"""

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from examples.quickstart.digits import Task
from examples.quickstart.jobs import Recipe
from victor_jax.errors import UserError

REGISTERS = (1, 4, 8, 16, 64)
LAYERS = (1, 2, 3, 5)  # k: after so many layers the visual tokens leave
K = 3  # the paper's
CONTROLS = (K, 1)  # the layers after which what is kept instead of registers, or registers of other kinds, are compared
FEWER = (1, 4, 8)  # of 16 registers
LLAVA = "llava"  # the trained model that methods start from, as users do from a checkpoint
SHORT = 0.2  # of its steps of stage 2, those of every method


@dataclass(frozen=True)
class Size:
    """A task and the model that learns it, the same for all points."""

    task: Task
    depth: int  # layers of the language tower
    recipe: Recipe = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return (self.task.grid * self.task.patches) ** 2


@dataclass(frozen=True)
class Training:
    compression: str
    stage1: float = 1.0  # times the steps of stage 1
    stage2: float = 1.0
    start: str = ""  # the training whose model it starts from, as a LLaVA checkpoint; none: the start of its seed


@dataclass(frozen=True)
class Point:
    training: str
    asked: str = ""  # a compression other than the one that was trained
    policy: str = ""  # a compression whose choice is trained before it is asked
    cut: int = 0  # so many of the registers that were trained, the first ones
    blind: bool = False  # without the image


ASKED = ("place", "where", "largest", "right_of", "below", "above_largest", "right_of_below")
RECIPE = {"pretrain": {"total_steps": 40}, "finetune": {"total_steps": 4800, "batch_size": 8}}


def task(patches: int, cell: int) -> Task:
    """The same questions, on ever more visual tokens."""
    return Task(patches=patches, cell=cell, kinds=ASKED, deep=65, turns=8, train=12_000, asked=len(ASKED), test=150)


SIZES = {
    "small": Size(task(patches=2, cell=16), depth=6, recipe=RECIPE),
    "144": Size(task(patches=3, cell=18), depth=6, recipe=RECIPE),
    "576": Size(task(patches=6, cell=18), depth=6, recipe=RECIPE),
}


def trainings(size: Size) -> dict[str, Training]:
    """By name."""
    # As many as a layer of victor-8 sees on average: an early resampler of the same compute.
    equal = -(-size.tokens * K // size.depth) + 8
    controls = {
        # Eight tokens of the image itself instead of registers.
        "last-8": "last:tokens=8",
        "random-8": "random:tokens=8",
        "windows-8": "windows:tokens=8",
        # Registers of another kind: any number of them later, other starts.
        "elastic-16": "elastic:registers=16",
        "zeros-8": "victor:registers=8,start=zeros",
        "pooled-8": "victor-pooled:registers=8",
    }
    compressions = {
        "full": "full",  # trained on for as long as the others
        **{f"victor-{m}-k{k}": f"victor:registers={m},layer={k}" for k in LAYERS for m in REGISTERS},
        **{f"vtw-k{k}": f"vtw:layer={k}" for k in LAYERS},
        **{at(name, k): f"{spec},layer={k}" for k in CONTROLS for name, spec in controls.items()},
        # Nothing dropped, and registers as the only way to the image.
        "undropped-8": f"victor:registers=8,layer={size.depth}",
        **{f"barred-{m}": f"victor:registers={m},layer={K},route=registers" for m in (1, 8, 16)},
    }
    victor, vtw = f"victor-8-k{K}", f"vtw-k{K}"
    # New blocks that all that is seen goes through: a stage 1 of ten times the length.
    blocks = {
        # Fewer tokens from the first layer on.
        "perceiver": f"perceiver:tokens={equal},depth=1",  # its six blocks would be most of such a small model
        "mqt": f"mqt:tokens={min(equal, 256)},draw=no",  # it has no more queries
    }
    # All tokens stay, few layers see them, and what these read is learnt late.
    visor = {"visor-0-2": "visor:self=0,cross=2", "visor": "visor:self=2,cross=2,sampled"}
    return {
        LLAVA: Training("full"),
        **{name: Training(compression, 1, SHORT, LLAVA) for name, compression in compressions.items()},
        **{name: Training(compression, 10, SHORT, LLAVA) for name, compression in blocks.items()},
        f"{victor}-long-stage1": Training(compressions[victor], 10, SHORT, LLAVA),
        **{name: Training(compression, 10, 0.5, LLAVA) for name, compression in visor.items()},
        # From random weights, as the model that the others start from.
        **{from_scratch(name): Training(compressions[name]) for name in (victor, vtw)},
    }


def from_scratch(name: str) -> str:
    return f"{name}-from-scratch"


def at(name: str, k: int) -> str:
    """A name says the layer where it is not the paper's."""
    return name if k == K else f"{name}-k{k}"


def points(size: Size) -> dict[str, Point]:
    """By name: each training asked as it was trained, and what else is asked."""
    return {
        **{name: Point(name) for name in trainings(size)},
        "no-image": Point("full", blind=True),
        **{f"untrained-vtw-k{k}": Point("full", asked=f"vtw:layer={k}") for k in LAYERS},
        **{f"visor-as-{s}-{c}": Point("visor", asked=f"visor:self={s},cross={c}") for s, c in ((0, 1), (0, 2), (1, 2))},
        "visor-policy": Point("visor", policy="visor:self=2,cross=2,policy"),
        "dyvte": Point("full", policy=f"dyvte:exits={'-'.join(map(str, LAYERS))}"),
        "dyvte-exact": Point("full", policy="dyvte:exact"),  # a gate after every layer
        **{
            at(f"elastic-16-as-{m}", k): Point(at("elastic-16", k), asked=f"elastic:registers={m},layer={k}")
            for k in CONTROLS
            for m in FEWER
        },
        **{at(f"victor-16-cut-to-{m}", k): Point(f"victor-16-k{k}", cut=m) for k in CONTROLS for m in FEWER},
    }


def model_setting(size: str) -> dict[str, Any]:
    """What decides all results of a size."""
    of = SIZES[size]
    return {"task": asdict(of.task) | {"kinds": list(of.task.kinds)}, "depth": of.depth, "recipe": of.recipe}


def setting(size: str, point: str) -> dict[str, Any]:
    """What decides a result, but for the seed. One that was measured under another setting is not of this grid."""
    of = points(SIZES[size])[point]
    return model_setting(size) | {"training": written(trainings(SIZES[size])[of.training]), "point": asdict(of)}


def written(training: Training) -> dict[str, Any]:
    """What its own stages do; the training that it starts from is named."""
    return {key: value for key, value in asdict(training).items() if value}


def chosen(patterns: str, names: list[str], what: str) -> list[str]:
    """Those that match one of the patterns, which are joined by commas."""
    wanted = patterns.split(",")
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"no {what} is named {pattern!r}: known are {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
