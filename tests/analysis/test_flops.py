"""The closed forms against the program itself: every matrix product in the traced module, at 7B shapes, no memory.

The two agree to the last product, so the tests ask for that, not for a margin that would hide a forgotten one.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from victor_jax.analysis import flops
from victor_jax.analysis.flops import Work
from victor_jax.compression.plan import Kind
from victor_jax.compression.spec import parse
from victor_jax.models.layers import Lora
from victor_jax.models.sequence import Batch, Sequence
from victor_jax.models.sizes import SIZES
from victor_jax.models.vlm import VLMModule, parameters

CONFIG = SIZES["7b"]
TEXT, ROWS, CHUNK = 128, 2, 64
SPECS = ["full", "victor:registers=8,layer=3", "victor:registers=64,layer=0", "vtw:layer=16"]
TABLES = [{parse(spec, CONFIG).registers, CONFIG.language.width} for spec in SPECS]  # of registers


def matmul_flops(jaxpr, times=1):
    """Of a jaxpr; the body of a scan counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and not looks_registers_up(equation):
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            total += 2 * times * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)
        assert equation.primitive.name != "while", "a loop of unknown length"
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += matmul_flops(part, inner)
    return total


def looks_registers_up(equation):
    """Or is the gradient of that: in float32, with the table of registers, or its transpose, on one side."""
    avals = [value.aval for value in (*equation.invars, *equation.outvars)]
    return all(aval.dtype == jnp.float32 for aval in avals) and any({*aval.shape} in TABLES for aval in avals)


def traced(function, *arguments):
    return matmul_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def module(spec, config=CONFIG, **fields):
    return VLMModule(config, parse(spec, config), jnp.bfloat16, **fields)


def params(net):
    return {path: leaf.value for path, leaf in parameters(net).items()}


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def sizes(net, images=1):
    counts = np.zeros((1, len(Kind)), np.int64)
    visual, registers = net.method.tokens_per_image(net.config), net.method.registers
    counts[0, [Kind.TEXT, Kind.VISUAL, Kind.REGISTER]] = TEXT, images * visual, images * registers
    return net.method.plan.sizes(counts)


def lengths_of(net, images=1):
    return net.method.plan.stage_lengths(sizes(net, images))


def batch_of(net, images=1):
    """Abstract."""
    visual, registers = net.method.tokens_per_image(net.config), net.method.registers
    line, size = ints(ROWS, -(-(TEXT + images * (visual + registers)) // 8) * 8), net.config.vision.image_size
    pixels = jax.ShapeDtypeStruct((ROWS, images, 3, size, size), jnp.uint8) if images else None
    return Batch(Sequence(line, line, line, ints(ROWS)), line, pixels)


def work(net, images=1, head=None):
    lengths = lengths_of(net, images)
    return Work(ROWS, lengths, ROWS * images, lengths[-1] if head is None else head)


def bare(length):
    """Of a full tower without images."""
    return Work(1, (length,), images=0, head=1)


def traced_forward(net):
    def run(params, batch):
        return net.apply({"params": unflatten_dict(params, sep="/")}, batch, sizes(net), TEXT)

    return traced(run, params(net), batch_of(net))


@pytest.mark.parametrize("spec", SPECS)
def test_forward_equals_the_traced_module(spec):
    net = module(spec)
    assert flops.forward(net, work(net, head=TEXT), "blocks") == traced_forward(net)


@pytest.mark.parametrize("spec", SPECS)
def test_prefill_equals_the_traced_module(spec):
    net, room = module(spec), 32

    def prefill(params, batch):
        return net.apply({"params": unflatten_dict(params, sep="/")}, batch, sizes(net), room, method=VLMModule.prefill)

    assert flops.forward(net, work(net, head=1), "blocks") == traced(prefill, params(net), batch_of(net))


STEPS = {
    "stage 1": (("projector", "compression"), 0),
    "stage 2": (("projector", "compression", "language"), 0),
    "adapters": (("projector", "compression"), 128),
}


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize("spec", SPECS[:2])
def test_training_step_equals_the_traced_gradient(spec, stage, remat):
    trained, rank = STEPS[stage]
    net = module(spec, remat=remat, lora=Lora(rank, 256.0) if rank else None)
    assert step_cost(net, trained).flops == traced_gradient(net, trained)


def test_text_only_rows_leave_the_vision_tower_out():
    net = module("victor:registers=8,layer=3", remat="full")
    trained, _ = STEPS["stage 2"]
    assert step_cost(net, trained, images=0).flops == traced_gradient(net, trained, images=0)


def test_grouped_heads_and_joined_feature_levels_are_counted():
    language = replace(CONFIG.language, kv_heads=8)
    config = replace(CONFIG, language=language, feature_levels=(10, 23), keep_class_token=True)
    net = module("full", config)
    assert flops.forward(net, work(net, head=TEXT), "blocks") == traced_forward(net)


def step_cost(net, trained, images=1):
    batch = Work.of_loss(ROWS, lengths_of(net, images), ROWS * images, CHUNK)
    return flops.training_step(net, batch, trained, "blocks")


def split(net, trained):
    every = params(net)
    learns = {path: leaf for path, leaf in every.items() if path.split("/")[0] in trained or "/lora_" in path}
    return learns, {path: leaf for path, leaf in every.items() if path not in learns}


def traced_gradient(net, trained, images=1):
    def loss(learns, frozen, batch):
        params = {"params": unflatten_dict(learns | frozen, sep="/")}
        rows, _ = net.apply(params, batch, sizes(net, images), CHUNK, method=VLMModule.loss)
        return rows.sum()

    return traced(jax.grad(loss), *split(net, trained), batch_of(net, images))


def test_caches_hold_what_the_paper_saves():
    """methods.md 1.3, 7B in bfloat16, 35 + 29 text tokens: 320 MiB in full, 67 MiB for Victor with 16 registers."""

    def mebibytes(spec, lengths):
        return flops.cache_bytes(module(spec), 1, lengths) / 2**20

    assert mebibytes("full", [640]) == 320
    assert round(mebibytes("victor:registers=16,layer=3", [656, 80])) == 67


# methods.md 1.7: share of the full prefill's FLOPs for 64 text tokens, by FastV's formula for one layer.
RATIOS = {256: 57.9, 128: 37.9, 64: 28.0, 32: 23.1, 16: 20.6, 8: 19.4}


def fastv_formula(n, width=4096, mlp_width=11008):
    """Two matrices in the feed-forward part, where Llama has three."""
    return 4 * n * width**2 + 2 * n**2 * width + 2 * n * width * mlp_width


@pytest.mark.parametrize("registers", RATIOS)
def test_savings_agree_with_the_formula_that_papers_use(registers):
    victor = module(f"victor:registers={registers},layer=3")
    lengths = (64 + 576 + registers, 64 + registers)
    stages = zip(victor.method.plan.stages, lengths, strict=True)
    papers = sum(n * fastv_formula(t) for n, t in stages) / (32 * fastv_formula(640))
    assert round(100 * papers, 1) == RATIOS[registers]

    def of_layers(net, lengths):
        return flops.forward(net, Work(1, lengths, images=0, head=0))

    ours = of_layers(victor, lengths) / of_layers(module("full"), (640,))
    assert 100 * ours == pytest.approx(RATIOS[registers], abs=0.25)


def test_half_counts_the_triangle_only():
    net = module("full")
    full, half = (flops.forward(net, bare(640), causal) for causal in ("full", "half"))
    assert full - half == 32 * 4 * 4096 * (640 * 639 // 2)


def test_blocks_count_the_rest_of_the_diagonal_blocks_too():
    net = module("full")
    blocks, half = (flops.forward(net, bare(640), causal) for causal in ("blocks", "half"))
    assert blocks - half == 32 * 4 * 4096 * 5 * (128 * 127 // 2)


def test_decode_reads_every_weight_and_every_cached_key():
    net = module("victor:registers=8,layer=3")
    language = sum(math.prod(leaf.shape) for path, leaf in params(net).items() if path.startswith("language/"))
    weights = 2 * (language - 32064 * 4096 - 65 * 4096)  # no embedding, no norms
    cache = 2 * 2 * 16 * (3 * 713 + 29 * 137) * 4096  # keys and values, of 32 heads of 128 in bfloat16
    assert flops.decode_bytes(net, 16, (712, 136)) == weights + cache


def test_recomputation_is_left_out_of_the_model_flops():
    trained, _ = STEPS["stage 2"]
    none, full = (step_cost(module("full", remat=remat), trained) for remat in ("none", "full"))
    assert full.model_flops == none.model_flops
    assert full.flops > 1.2 * none.flops
