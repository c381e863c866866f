"""TPU slices and GPUs by name, and what the data sheets promise of their chips."""

import math
import re
from dataclasses import dataclass

from victor_jax.errors import UserError

GIB = 2**30
FRACTION = 0.95  # of a GPU's memory that jax is given: XLA_PYTHON_CLIENT_MEM_FRACTION; by itself jax takes 0.75


@dataclass(frozen=True)
class Chip:
    name: str
    kind: str  # the beginning of jax's device_kind
    flops: float  # peak per second, dense bfloat16
    usable: float  # bytes of HBM that a program may use
    bandwidth: float  # bytes per second between HBM and the cores
    links: float  # bytes per second out of a chip, over all its links; as many come in


@dataclass(frozen=True)
class Tpu(Chip):
    longest: int  # chips along one axis of the torus
    cores: int  # in the name under which a slice is rented
    rented: str  # the beginning of that name
    default: tuple[int, ...]  # a slice


@dataclass(frozen=True)
class Gpu(Chip):
    """What a compiler must know besides, of one multiprocessor (SM) where it says so."""

    capability: tuple[int, int]  # compute capability
    multiprocessors: int
    float_units: int  # float32, of an SM
    shared_memory: int  # KiB of an SM; a block may have 1 KiB less
    l2_cache: int  # MiB
    clock: float  # GHz, boost

    @property
    def memory(self) -> float:
        """Bytes that the driver reports."""
        return self.usable / FRACTION


# Peak and bandwidth: the data sheets at docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Links: half of the
# "bidirectional inter-chip interconnect bandwidth" there; for v4 the 6 links of 50 GB/s of arXiv 2304.01433, table 4.
# Usable: what libtpu 0.0.42 says when a program does not fit.
TPUS = (
    Tpu("v4", "TPU v4", 275e12, 30.75 * GIB, 1.2e12, 300e9, 16, 2, "v4", (4, 4, 4)),
    Tpu("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 200e9, 16, 1, "v5litepod", (8, 8)),
    Tpu("v5p", "TPU v5", 459e12, 95.74 * GIB, 2765e9, 600e9, 24, 2, "v5p", (4, 4, 4)),
    Tpu("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 1638e9, 400e9, 16, 1, "v6e", (8, 8)),
)

# The SXM modules. NVIDIA's data sheets of A100 80GB, H100, H200 and DGX B200 (an eighth of it): dense bfloat16, HBM,
# half of the NVLink figure, which counts both directions. SMs, caches and clocks: the whitepapers of the A100 and H100
# architectures and the CUDA programming guide's table of compute capabilities. Memory: what CUDA reports as the total,
# in GiB, which is less than what is sold.
GPUS = (
    Gpu("a100", "NVIDIA A100", 312e12, FRACTION * 79.1 * GIB, 2039e9, 300e9, (8, 0), 108, 64, 164, 40, 1.41),
    Gpu("h100", "NVIDIA H100", 989e12, FRACTION * 79.1 * GIB, 3350e9, 450e9, (9, 0), 132, 128, 228, 50, 1.98),
    Gpu("h200", "NVIDIA H200", 989e12, FRACTION * 139.8 * GIB, 4.8e12, 450e9, (9, 0), 132, 128, 228, 50, 1.98),
    Gpu("b200", "NVIDIA B200", 2250e12, FRACTION * 178.3 * GIB, 8e12, 900e9, (10, 0), 148, 128, 228, 126, 1.965),
)
NODE = 8  # GPUs whose NVLink reaches all others
CHIPS: dict[str, Tpu | Gpu] = {chip.name: chip for chip in TPUS} | {chip.name: chip for chip in GPUS}
EXAMPLES = "v5e:8x8, h200 or h200x8"


def peak_flops(device_kind: str) -> float | None:
    """Per second, of one device in dense bfloat16; None where it is not known."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind)).flops if known else None


@dataclass(frozen=True)
class Topology:
    chip: Tpu | Gpu
    shape: tuple[int, ...]  # of a TPU slice; of GPUs how many

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        sizes = "x".join(map(str, self.shape))
        if isinstance(self.chip, Tpu):
            return f"{self.chip.name}:{sizes}"
        return self.chip.name + (f"x{sizes}" if self.chips > 1 else "")

    @property
    def described(self) -> str:
        if isinstance(self.chip, Tpu):
            return f"{self.name}: {self.chips} chips, rented as {self.accelerator_type}"
        return f"{self.name}: {self.chips} {self.chip.kind}, jax with {FRACTION:.0%} of their memory"

    @property
    def accelerator_type(self) -> str:
        """The name under which TPU VMs are rented."""
        assert isinstance(self.chip, Tpu)
        return f"{self.chip.rented}-{self.chips * self.chip.cores}"


def parse(text: str) -> Topology:
    """`v5e:8x8`, or `v5e` for 64 chips; `h200` for one GPU, or `h200x8`."""
    found = re.fullmatch(r"([a-z]+\d+[a-z]?)(?::([\dx]+)|x(\d+))?", text)
    chip = CHIPS.get(found[1]) if found else None
    if chip is None:
        raise UserError(f"topology {text!r}: known are {', '.join(CHIPS)}; write {EXAMPLES}")
    _, slice_, count = found.groups()  # type: ignore[union-attr]
    if isinstance(chip, Gpu):
        if slice_ or not 1 <= int(count or 1) <= NODE:
            raise UserError(f"topology {text!r}: write {chip.name}xN, with N up to the {NODE} GPUs of a node")
        return Topology(chip, (int(count or 1),))
    sizes = tuple(map(int, slice_.split("x"))) if slice_ else chip.default
    if count or len(sizes) != len(chip.default) or not all(0 < size <= chip.longest for size in sizes):
        example = f"{chip.name}:{'x'.join(map(str, chip.default))}"
        raise UserError(
            f"topology {text!r}: {chip.name} has {len(chip.default)} axes of up to {chip.longest} chips, {example}"
        )
    return Topology(chip, sizes)
