"""TPU slices by name: what the data sheets promise of their chips, and devices to compile for without a TPU."""

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from victor_jax.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    name: str
    kind: str  # the beginning of jax's device_kind
    flops: float  # peak per second, dense bfloat16
    usable: float  # bytes of HBM that the compiler gives to a program
    bandwidth: float  # bytes per second between HBM and the cores
    links: float  # bytes per second out of a chip, over all its links; as many come in
    longest: int  # chips along one axis of the torus
    cores: int  # in the name under which a slice is rented
    rented: str  # the beginning of that name
    default: tuple[int, ...]  # a slice


# Peak and bandwidth: the data sheets at docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Links: half of the
# "bidirectional inter-chip interconnect bandwidth" there; for v4 the 6 links of 50 GB/s of arXiv 2304.01433, table 4.
# Usable: what libtpu 0.0.42 says when a program does not fit.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, 30.75 * GIB, 1.2e12, 300e9, 16, 2, "v4", (4, 4, 4)),
        Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 200e9, 16, 1, "v5litepod", (8, 8)),
        Chip("v5p", "TPU v5", 459e12, 95.74 * GIB, 2765e9, 600e9, 24, 2, "v5p", (4, 4, 4)),
        Chip("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 1638e9, 400e9, 16, 1, "v6e", (8, 8)),
    )
}
GPU_FLOPS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}  # dense bfloat16


def peak_flops(device_kind: str) -> float | None:
    """Per second, of one device in dense bfloat16; None where it is not known."""
    peaks = {chip.kind: chip.flops for chip in CHIPS.values()} | GPU_FLOPS
    known = [kind for kind in peaks if device_kind.startswith(kind)]
    return peaks[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Topology:
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """The name under which TPU VMs are rented."""
        return f"{self.chip.rented}-{self.chips * self.chip.cores}"


def parse(text: str) -> Topology:
    """`v5e:8x8`, or `v5e` for 64 chips."""
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"topology {text!r}: unknown TPU {name!r}, known are {', '.join(CHIPS)}; write v5e:8x8")
    chip = CHIPS[name]
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in shape.split("x")) if shape else chip.default
    if len(sizes) != len(chip.default) or not all(0 < size <= chip.longest for size in sizes):
        example = "x".join(map(str, chip.default))
        raise UserError(
            f"topology {text!r}: {name} has {len(chip.default)} axes of up to {chip.longest} chips, {name}:{example}"
        )
    return Topology(chip, sizes)


def devices(topology: Topology) -> list[Any]:
    """Stand-ins for the chips: programs can be compiled for them, not run. For a process that does nothing else."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'compiling for a TPU needs libtpu: pip install ".[tpu]", best in an environment of its own (docs/pods.md)'
        )
    jax.config.update("jax_platforms", "cpu")  # a device that is there is left alone
    # libtpu reads these when it is loaded, below.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server to ask about the TPUs of this machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.accelerator_type)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip act as one device
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:  # libtpu raises whatever it likes
        raise UserError(f"libtpu does not know the topology {topology.name}: {str(error).splitlines()[0]}") from None
    return list(found.devices)
