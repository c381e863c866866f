"""What a compiled program computes and moves through memory, summed up from its instructions.

* FLOPs: two for each multiplication with its addition, of matrix products, convolutions and cuDNN's attention (which
  counts in full, causal or not). Everything else is left out.
* Bytes: what each instruction reads and writes in HBM. A fusion reads its operands once, of a slice or a gather only
  what it takes, and writes its result; an update in place writes the update. What a cache would save is not known.
* Copies: results in HBM that hold nothing new, of `LEAST` bytes or more: copied, sliced, joined, transposed, cast or
  padded from something that is in HBM already.
"""

import itertools
import math
import re
from dataclasses import dataclass

from victor_jax.analysis.hlo import Array, Instruction, Program

LEAST = 2**20
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "call", "conditional", "iota"}
FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier", "async-start"}
TAKES = ("slice", "dynamic-slice", "gather")
MOVES = {"copy", "copy-start", "transpose", "reshape", "concatenate", "pad", "convert", *TAKES}


@dataclass(frozen=True)
class Copy:
    name: str
    type: str
    bytes: int  # in one run of the program
    argument: str  # of the program, that it is copied from: params['language']['head']; else nothing
    source: str  # the operation of the model that it belongs to


def flops(program: Program, start: str = "ENTRY") -> int:
    count = {"dot": _dot, "convolution": _convolution, "custom-call": _attention}
    return sum(
        run.times * count[run.instruction.opcode](run.instruction, program.computations[run.computation])
        for run in program.runs(start)
        if run.instruction.opcode in count
    )


def moved(program: Program, start: str = "ENTRY") -> int:
    """Bytes."""
    return sum(
        run.times * _traffic(program, run.instruction, run.computation)
        for run in program.runs(start)
        if run.outside is None
    )


def copies(program: Program, start: str = "ENTRY", least: int = LEAST) -> list[Copy]:
    """The largest first."""
    found = []
    for run in program.runs(start):
        one = run.instruction
        size = _hbm(one.arrays[:1] if one.opcode == "copy-start" else one.arrays)  # which names its operand, too
        if run.outside is None and size >= least and _holds_nothing_new(program, one, least):
            origins = (program.origin(run.computation, name) for name in one.operands)
            argument = next(filter(None, origins), "").replace("\\'", "'")
            found.append(Copy(one.name, one.type, run.times * size, argument, one.source))
    return sorted(found, key=lambda copy: -copy.bytes)


# --- bytes ----------------------------------------------------------------------------------------------------------


def _hbm(arrays: list[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _traffic(program: Program, one: Instruction, computation: str) -> int:
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0
    if one.opcode.endswith("-start"):  # its result names what is read, too
        return _hbm(one.arrays)
    known = program.computations[computation]
    read = sum(_read(program, one, at, known[name]) for at, name in enumerate(one.operands) if name in known)
    return read + _written(program, one, computation)


def _read(program: Program, user: Instruction, at: int, operand: Instruction) -> int:
    """Bytes that `user` takes of its operand number `at`."""
    whole = _hbm(operand.arrays)
    if user.opcode in TAKES and at == 0:
        return min(whole, sum(array.bytes for array in user.arrays))
    if user.opcode == "dynamic-update-slice" and at == 0:
        return 0
    if user.opcode != "fusion" or not whole:
        return whole
    inside = program.computations[user.called[0]]
    start = next((one for one in inside.values() if one.opcode == "parameter" and one.rest.startswith(f"{at})")), None)
    return whole if start is None else min(whole, _read_inside(program, inside, start))


def _read_inside(program: Program, inside: dict[str, Instruction], value: Instruction) -> int:
    """Bytes that a fused computation takes of one of its values."""
    read = 0
    for user in inside.values():
        for at, name in enumerate(user.operands):
            if name == value.name:
                is_same = user.opcode in ("bitcast", "copy")
                read += _read_inside(program, inside, user) if is_same else _read(program, user, at, value)
    return read


def _written(program: Program, one: Instruction, computation: str) -> int:
    known = program.computations[computation]
    if one.opcode == "dynamic-update-slice":
        return _hbm(known[one.operands[1]].arrays)
    if one.opcode in ("bitcast", "tuple"):
        return sum(_written(program, known[name], computation) for name in one.operands if name in known)
    if one.opcode == "fusion" and not all(array.on_chip for array in one.arrays):
        inside = program.computations[one.called[0]]
        root = next(each for each in inside.values() if each.is_root)
        return min(_hbm(one.arrays), _written(program, root, one.called[0]))
    return _hbm(one.arrays)


def _holds_nothing_new(program: Program, one: Instruction, least: int) -> bool:
    if one.opcode != "fusion":
        return one.opcode in MOVES
    large = {
        run.instruction.opcode
        for run in program.runs(one.called[0])
        if sum(array.bytes for array in run.instruction.arrays) >= least
    } - {"parameter", "bitcast", "fusion", "tuple", "constant", "broadcast"}
    return bool(large) and large <= MOVES


# --- FLOPs ----------------------------------------------------------------------------------------------------------


def _dot(one: Instruction, known: dict[str, Instruction]) -> int:
    left = known[one.operands[0]].arrays[0].shape
    contracted = (one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",")
    return 2 * math.prod(one.arrays[0].shape) * math.prod(left[int(axis)] for axis in contracted if axis)


def _convolution(one: Instruction, known: dict[str, Instruction]) -> int:
    """A TPU writes every product as one; rows of a batched product are then places, of which most meet no kernel."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest).groups()  # type: ignore[union-attr]
    (x, *_), (kernel, *_) = (known[name].arrays for name in one.operands)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", one.attribute(r"window=\{([^}]*)\}") or ""))
    shape, pairs = one.arrays[0].shape, 1

    def of(key: str, axis: int, default: str) -> list[int]:
        return [int(n) for n in window[key].split("x")[axis].split("_")] if key in window else [int(default)] * 2

    for axis in range(sum(label.isdigit() for label in right)):
        label = str(axis)
        inputs, size, outputs = x.shape[left.index(label)], kernel.shape[right.index(label)], shape[out.index(label)]
        (stride, *_), (low, _) = of("stride", axis, "1"), of("pad", axis, "0")
        (spread, *_), (apart, *_) = of("lhs_dilate", axis, "1"), of("rhs_dilate", axis, "1")
        places = (o * stride + k * apart - low for o, k in itertools.product(range(outputs), range(size)))
        pairs *= sum(0 <= place <= (inputs - 1) * spread and place % spread == 0 for place in places)
    contracted = kernel.shape[right.index("i")]
    return 2 * pairs * shape[out.index("b")] * shape[out.index("f")] * contracted


def _attention(one: Instruction, known: dict[str, Instruction]) -> int:
    """cuDNN's, forward; other custom calls compute nothing that counts."""
    if "__cudnn$fmha" not in one.rest or "Backward" in one.rest:
        return 0
    scores = re.findall(r"\d+", one.attribute(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]') or "")
    return 4 * math.prod(map(int, scores)) * one.arrays[0].shape[-1]
