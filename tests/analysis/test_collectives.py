import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from victor_jax.analysis.collectives import collectives, totals
from victor_jax.analysis.hlo import Program
from victor_jax.sharding.mesh import make_mesh

LAYERS, WIDTH = 5, 64


def compiled_text(fsdp):
    """A chain of layers whose weights are cut over the devices, with its gradient."""
    mesh = make_mesh(data=8 // fsdp, fsdp=fsdp)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    cut = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((8, WIDTH), jnp.float32, sharding=rows)

    def loss(weights, x):
        def layer(x, weight):
            x = jax.lax.with_sharding_constraint(x, rows)
            whole = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss), out_shardings=cut).lower(weights, x).compile().as_text()


@pytest.mark.parametrize("fsdp", [2, 8])
def test_a_gather_in_a_loop_counts_once_per_turn(fsdp):
    gathers = [one for one in collectives(Program.read(compiled_text(fsdp))) if one.kind == "all-gather"]
    forward = [one for one in gathers if "transpose" not in one.source]
    assert [(one.bytes, one.devices, one.times) for one in forward] == [(4 * WIDTH * WIDTH, fsdp, LAYERS)]
    assert all(one.known for one in gathers)


def test_gradients_are_summed_over_every_device():
    sums = [one for one in collectives(Program.read(compiled_text(8))) if one.kind in ("all-reduce", "reduce-scatter")]
    assert sum(one.bytes * one.times for one in sums) >= 4 * LAYERS * WIDTH * WIDTH
    assert {one.devices for one in sums} == {8}


# The TPU compiler's spellings, cut down to what matters.
TPU = """HloModule jit_step, is_scheduled=true

%piece.1 (param_0: bf16[4,128]) -> bf16[64,128] {
  %param_0 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=16] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%piece.2 (param_0.1: bf16[4,128]) -> bf16[64,128] {
  %param_0.1 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=16] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%body (state: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %state = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %part = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %fusion.1 = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%part), kind=kCustom, calls=%piece.1
  %fusion.2 = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%part), kind=kCustom, calls=%piece.2
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %next = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) tuple(%counter, %part)
}

%condition (state.1: (s32[], bf16[4,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %state.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main (x: bf16[4,128]) -> (s32[], bf16[4,128]) {
  %x = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)S(6)} copy(%zero)
  %begin = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) tuple(%copied, %x)
  %permute-start = (bf16[4,128]{1,0:T(8,128)(2,1)}, bf16[4,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %permute-done = bf16[4,128]{1,0:T(8,128)(2,1)} collective-permute-done(%permute-start)
  %reduced = (bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b), channel_id=2, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %scattered = f32[16]{0:T(128)} reduce-scatter(%c), channel_id=3, replica_groups=[4,8]<=[32], dimensions={0}
  ROOT %while.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) while(%begin), condition=%condition, body=%body
}
"""


def of_kind(text, kind):
    return [one for one in collectives(Program.read(text)) if one.kind == kind]


def test_a_collective_done_in_pieces_counts_once():
    (gather,) = of_kind(TPU.replace("LIMIT", "32"), "all-gather")
    assert (gather.bytes, gather.devices, gather.times, gather.known) == (2 * 64 * 128, 16, 32, True)


def test_a_loop_that_hides_its_length_is_marked():
    (gather,) = of_kind(TPU.replace("constant(LIMIT)", "parameter(1)"), "all-gather")
    assert (gather.times, gather.known) == (1, False)


def test_start_and_done_are_one():
    (permute,) = of_kind(TPU, "collective-permute")
    assert permute.bytes == permute.wire_bytes == 2 * 4 * 128


def test_all_arrays_of_a_combined_sum_count():
    (reduced,) = of_kind(TPU, "all-reduce")
    assert (reduced.bytes, reduced.devices) == (2 * 8 * 128 + 4, 4)
    assert reduced.wire_bytes == 2 * 3 / 4 * reduced.bytes


def test_a_scattered_sum_counts_what_goes_in():
    (scattered,) = of_kind(TPU, "reduce-scatter")
    assert (scattered.bytes, scattered.wire_bytes) == (8 * 4 * 16, 7 * 4 * 16)


def test_totals_are_per_kind_over_all_turns():
    assert totals(collectives(Program.read(TPU.replace("LIMIT", "3"))))["all-gather"] == (
        3,
        3 * 2 * 64 * 128,
        3 * 2 * 60 * 128,
    )
