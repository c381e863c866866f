import jax
import jax.numpy as jnp
import pytest

from victor_jax.analysis import traffic
from victor_jax.analysis.hlo import Program

LAYERS, ROWS, WIDTH = 5, 16, 1024
WEIGHT, STATE = 2 * WIDTH * WIDTH, 2 * ROWS * WIDTH  # bytes

# A loop over layers whose weights are stacked, as the compiler for GPUs writes it: each layer's weight is sliced out,
# then multiplied. Below it the same with the weight read where it is.
LOOP = """HloModule jit_decode, is_scheduled=true

%slice_computation (param_0: bf16[5,1024,1024], param_1: s32[]) -> bf16[1024,1024] {
  %param_0 = bf16[5,1024,1024]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = bf16[1,1024,1024]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), \
dynamic_slice_sizes={1,1024,1024}
  ROOT %bitcast.1 = bf16[1024,1024]{1,0} bitcast(%dynamic-slice.1)
}

%product_computation (param_0.1: bf16[16,1024], param_1.1: bf16[1024,1024]) -> bf16[16,1024] {
  %param_0.1 = bf16[16,1024]{1,0} parameter(0)
  %param_1.1 = bf16[1024,1024]{1,0} parameter(1)
  ROOT %dot.1 = bf16[16,1024]{1,0} dot(%param_0.1, %param_1.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], bf16[16,1024], bf16[5,1024,1024])) -> (s32[], bf16[16,1024], bf16[5,1024,1024]) {
  %state = (s32[], bf16[16,1024]{1,0}, bf16[5,1024,1024]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[16,1024]{1,0} get-tuple-element(%state), index=1
  %w = bf16[5,1024,1024]{2,1,0} get-tuple-element(%state), index=2
  %sliced = bf16[1024,1024]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_computation
  %product = bf16[16,1024]{1,0} fusion(%x, %sliced), kind=kCustom, calls=%product_computation
  ROOT %next = (s32[], bf16[16,1024]{1,0}, bf16[5,1024,1024]{2,1,0}) tuple(%i, %product, %w)
}

%condition (state.1: (s32[], bf16[16,1024], bf16[5,1024,1024])) -> pred[] {
  %state.1 = (s32[], bf16[16,1024]{1,0}, bf16[5,1024,1024]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[16,1024], w.1: bf16[5,1024,1024]) -> (s32[], bf16[16,1024], bf16[5,1024,1024]) {
  %x.1 = bf16[16,1024]{1,0} parameter(0), metadata={op_name="x"}
  %w.1 = bf16[5,1024,1024]{2,1,0} parameter(1), metadata={op_name="params[\\'layers\\']"}
  %start = s32[] constant(0)
  %before = (s32[], bf16[16,1024]{1,0}, bf16[5,1024,1024]{2,1,0}) tuple(%start, %x.1, %w.1)
  ROOT %loop = (s32[], bf16[16,1024]{1,0}, bf16[5,1024,1024]{2,1,0}) while(%before), condition=%condition, body=%body
}
"""
PROGRAM = Program.read(LOOP)


def test_a_weight_that_is_sliced_out_of_a_stack_is_a_copy_of_that_argument():
    (copy,) = traffic.copies(PROGRAM)
    assert (copy.argument, copy.bytes) == ("params['layers']", LAYERS * WEIGHT)


def test_a_slice_in_the_memory_of_the_cores_is_no_copy():
    on_chip = LOOP.replace("%sliced = bf16[1024,1024]{1,0}", "%sliced = bf16[1024,1024]{1,0:S(1)}")
    assert traffic.copies(Program.read(on_chip)) == []
    assert traffic.moved(Program.read(on_chip)) == pytest.approx(LAYERS * (WEIGHT + 2 * STATE), rel=1e-3)


def test_of_a_stack_only_the_slice_is_read():
    # The slice is read, written, and read again by the product.
    assert traffic.moved(PROGRAM) == pytest.approx(LAYERS * (3 * WEIGHT + 2 * STATE), rel=1e-3)


def test_a_loop_computes_as_often_as_it_runs():
    assert traffic.flops(PROGRAM) == LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert traffic.flops(PROGRAM, PROGRAM.loop()) == 2 * ROWS * WIDTH * WIDTH


def test_an_update_in_place_moves_the_update():
    text = """HloModule jit_write

ENTRY %main (cache: bf16[4096,1024], new: bf16[1,1024], at: s32[]) -> bf16[4096,1024] {
  %cache = bf16[4096,1024]{1,0} parameter(0)
  %new = bf16[1,1024]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %update = bf16[4096,1024]{1,0} dynamic-update-slice(%cache, %new, %at, %at)
}
"""
    program = Program.read(text)
    assert traffic.copies(program) == []
    assert traffic.moved(program) < 3 * 2 * 1024


def test_a_batched_product_that_a_tpu_writes_as_a_convolution_counts_what_it_is():
    """[64, 4096] times 4 heads of [4096, 128]: heads are places of the kernel, most of which meet padding."""
    text = """HloModule jit_project

ENTRY %main (x: bf16[64,4096,1], w: bf16[4,128,4096]) -> bf16[64,4,128] {
  %x = bf16[64,4096,1]{1,0,2:T(8,128)(2,1)} parameter(0)
  %w = bf16[4,128,4096]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %q = bf16[64,4,128]{2,0,1:T(8,128)(2,1)} convolution(%x, %w), window={size=4 pad=3_3 rhs_reversal=1}, \
dim_labels=bf0_0oi->b0f
}
"""
    assert traffic.flops(Program.read(text)) == 2 * 64 * 4096 * 4 * 128


def test_what_a_compiled_program_computes_is_found_in_its_text():
    def chain(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((LAYERS, 256, 256), (ROWS, 256))]
    program = Program.read(jax.jit(chain).lower(*shapes).compile().as_text())
    assert traffic.flops(program) == LAYERS * 2 * ROWS * 256 * 256
