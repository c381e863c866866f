"""What answering does differently on each platform, all of it here; the arithmetic is the same.

Each choice keeps weights and caches from being copied for every token. The compiler says so: docs/performance.md has
the figures, tests/accelerators the checks.
"""

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, SingleDeviceSharding

from victor_jax.compression.plan import Method
from victor_jax.models.config import VLMConfig
from victor_jax.models.parameters import Declared
from victor_jax.models.vlm import VLMModule, parameters
from victor_jax.ops.attention import CACHE_AXES, PLATFORMS, choose
from victor_jax.sharding.mesh import of_parameter

GPU = PLATFORMS["cudnn"]
TRANSPOSED = ("/q/kernel", "/k/kernel", "/v/kernel")
# XLA:GPU would join the products of q, k and v, and copy their weights into one array for it. Means nothing elsewhere.
COMPILER_OPTIONS = {"xla_gpu_dot_merger_threshold_mb": 0}
# Said, since a TPU may choose otherwise for a width that 128 does not divide.
ROW_MAJOR = ("/gate/kernel", "/up/kernel")


def module_for(
    config: VLMConfig, method: Method, dtype: jax.typing.DTypeLike, attention: str, platform: str
) -> VLMModule:
    """On a GPU each layer's weights are an array of their own, read where they are; in a loop over layers a slice would
    be copied first. On a TPU the caches have the slots in front, as its loop over new tokens wants them."""
    dtype = jax.numpy.dtype(dtype)
    return VLMModule(
        config,
        method,
        dtype,
        choose(attention, platform=platform, dtype=dtype, head_dims=config.head_dims),
        layers_per_loop=1 if platform in GPU else None,
        cache_axes=("SKBH", "SKBH") if platform == "tpu" else CACHE_AXES,
    )


def abstract_weights(module: VLMModule, place: Mesh | jax.Device) -> dict[str, jax.ShapeDtypeStruct]:
    """By path: the shape of every parameter, and where and in which order its numbers are placed."""
    platform = (place.devices.flat[0] if isinstance(place, Mesh) else place).platform

    def sharding(path: str, leaf: Declared) -> jax.sharding.Sharding:
        if isinstance(place, Mesh):
            return of_parameter(path, leaf.shape, leaf.spec, place)
        return SingleDeviceSharding(place)

    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape, module.dtype, sharding=weight_format(path, sharding(path, leaf), platform)
        )
        for path, leaf in parameters(module).items()
    }


def weight_format(path: str, sharding: jax.sharding.Sharding, platform: str) -> jax.sharding.Sharding | Format:
    """Where a parameter is placed, and on a TPU in which order, so that decoding does not transpose it first."""
    if platform != "tpu" or not path.startswith("language/"):
        return sharding
    if path.endswith(TRANSPOSED):
        return Format(Layout((0, 2, 1)), sharding)
    if path.endswith(ROW_MAJOR):
        return Format(Layout((0, 1, 2)), sharding)
    return Format(Layout((1, 0)), sharding) if path == "language/head" else sharding
