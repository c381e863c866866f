"""Devices that are not there: programs can be compiled for them, not run. For a process that does nothing else.

The TPU compiler is libtpu's. That for GPUs is in the wheels of jax[cuda], and is told what the GPU would have said. It
does not try kernels out (autotuning needs a GPU), so the real program may have faster ones: memory, copies, collectives
and which kernels of cuDNN are called are those of the real program, times are not known.
"""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from victor_jax.analysis.topology import FRACTION, Gpu, Topology, Tpu
from victor_jax.errors import UserError

NO_AUTOTUNING = "--xla_gpu_autotune_level=0"


def devices(topology: Topology) -> list[Any]:
    compiler, extra = ("libtpu", "tpu") if isinstance(topology.chip, Tpu) else ("jax_cuda13_plugin", "cuda")
    if importlib.util.find_spec(compiler) is None:
        raise UserError(
            f'compiling for {topology.name} needs {compiler}: pip install ".[{extra}]", best in an environment of its '
            "own (docs/pods.md)"
        )
    jax.config.update("jax_platforms", "cpu")  # a device that is there is left alone
    if isinstance(topology.chip, Tpu):
        return _tpus(topology, topology.chip)
    return _gpus(topology.chip, topology.chips)


def _tpus(topology: Topology, chip: Tpu) -> list[Any]:
    # libtpu reads these when it is loaded, below.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server to ask about the TPUs of this machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.accelerator_type)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    options: dict[str, Any] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip act as one device
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:  # libtpu raises whatever it likes
        raise UserError(f"libtpu does not know the topology {topology.name}: {str(error).splitlines()[0]}") from None
    return list(found.devices)


def _gpus(chip: Gpu, count: int) -> list[Any]:
    # Without a GPU no kernel can be timed. XLA reads this when it is loaded, or when it compiles for the first time.
    if NO_AUTOTUNING not in (given := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{given} {NO_AUTOTUNING}".strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(FRACTION))  # `usable` is what that leaves
    _answer_for(chip)
    found = topologies.get_topology_desc(
        platform="cuda", topology_name=chip.name, target_config=target(chip), topology=f"1x1x{count}"
    )
    return list(found.devices)


def _answer_for(chip: Gpu) -> None:
    """What jax asks of a live GPU while it lowers a program is answered here, for this process and to its end."""
    from jax._src import xla_bridge
    from jax._src.cudnn import fused_attention_stablehlo as attention

    canonical: Any = xla_bridge.canonicalize_platform
    answers: list[tuple[Any, str, Any]] = [
        # Whether a "gpu" is one of CUDA, ROCm or oneAPI goes by which of them has devices, and none has.
        (xla_bridge, "canonicalize_platform", lambda name: "cuda" if name == "gpu" else canonical(name)),
        # What cuDNN's attention can do depends on the compute capability of the first GPU.
        (attention, "check_compute_capability", lambda least: _version(least) <= chip.capability),
        (attention, "is_cuda_compute_capability_equal", lambda asked: _version(asked) == chip.capability),
    ]
    for module, name, answer in answers:
        setattr(module, name, answer)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def target(chip: Gpu) -> str:
    """A GPU in the compiler's words, a GpuTargetConfigProto in text form."""
    major, minor = chip.capability
    # From Hopper on, some instructions are for one compute capability alone: sm_90a, sm_100a.
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
    platform_name: "CUDA"
    device_description_str: "{chip.kind}"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    gpu_device_info {{
      name: "{chip.kind}"
      device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
      core_count: {chip.multiprocessors}
      fpus_per_core: {chip.float_units}
      clock_rate_ghz: {chip.clock}
      memory_bandwidth: {chip.bandwidth:.0f}
      device_memory_size: {chip.memory:.0f}
      l2_cache_size: {chip.l2_cache << 20}
      shared_memory_per_core: {chip.shared_memory << 10}
      shared_memory_per_block: {48 << 10}
      shared_memory_per_block_optin: {(chip.shared_memory - 1) << 10}
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      driver_version: "13.0.0"
      runtime_version: "13.0.0"
      compile_time_toolkit_version: "13.0.0"
      dnn_version: "9.10.0"
    }}"""
