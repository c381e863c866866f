"""The plain path against a slow float64 reference and jax's own, splash against the plain path, and every error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from victor_jax.errors import UserError
from victor_jax.ops.attention import BLOCKS, attend_cache, attention, causal_blocks, choose

BF16_EPS = 2.0**-7  # the distance from 1 to the next bfloat16; rounding to nearest is off by half of it


def qkv(T, S, N, K, H, B=2, dtype=jnp.float32):
    """q [B,T,N,H], k and v [B,S,K,H], standard normal."""
    rng = np.random.default_rng([T, S, N, K, H])
    return tuple(jnp.asarray(rng.standard_normal((B, *shape, H)).astype(dtype)) for shape in ((T, N), (S, K), (S, K)))


compiled = jax.jit(attention, static_argnames=("causal", "implementation"))  # one program, not one per operation


def weights_like(q):
    """Every element has its own."""
    return np.sin(np.arange(q.size, dtype=np.float32)).reshape(q.shape)


def reference(q, k, v, *, causal, mask=None):
    """Softmax attention in float64, one row, one head and one query at a time, over the allowed keys only."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, T, N, H), S, K = q.shape, k.shape[1], k.shape[2]
    out = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        allowed = [s for s in range(S) if (not causal or s <= t) and (mask is None or mask[b, t, s])]
        head = n // (N // K)
        scores = k[b, allowed, head] @ q[b, t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, allowed, head]
    return out


def value_and_grads(q, k, v, *, causal, implementation):
    """Output, and gradients of a weighted sum of it: every element of the output has its own cotangent."""
    weight = weights_like(q)

    def loss(q, k, v):
        out = attention(q, k, v, causal=causal, implementation=implementation)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, grads


def assert_same(actual, expected):
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5, rtol=0)
    for name, got, want in zip("qkv", actual[1], expected[1], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=0, err_msg=f"gradient of {name}")


# --- the plain path


@pytest.mark.parametrize(("N", "K"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_xla_is_softmax_attention(N, K, causal, masked):
    q, k, v = qkv(7, 7, N, K, 16)
    # The diagonal stays allowed: a query without any key has no softmax to compare.
    mask = (np.random.default_rng(0).random((2, 7, 7)) < 0.5) | np.eye(7, dtype=bool) if masked else None
    out = compiled(q, k, v, causal=causal, mask=mask)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, causal=causal, mask=mask), atol=1e-6, rtol=0)


@pytest.mark.parametrize("masked", [True, False])
def test_blocks_of_causal_queries_equal_jax(masked):
    """Outputs and gradients, where the last block is shorter than the others."""
    T = 300
    arrays = qkv(T, T, 4, 2, 16)
    weight = weights_like(arrays[0])
    near = np.subtract.outer(np.arange(T), np.arange(T)) < 70  # a sliding window
    mask = jnp.asarray(np.stack([near, near])) if masked else None

    def jax_s(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None], is_causal=True)

    def ours(q, k, v):
        return attention(q, k, v, causal=True, mask=mask)

    def with_gradients(f):
        return jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: (f(*a) * weight).sum(), (0, 1, 2))(*a)))(*arrays)

    (out, gradients), (expected, expected_gradients) = with_gradients(ours), with_gradients(jax_s)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_blocks_cover_every_query_once_and_stay_few():
    for length in (1, 8, 128, 129, 720, 832, 1024, 1025, 4096, 5001):
        blocks = causal_blocks(length)
        assert [i for start, end in blocks for i in range(start, end)] == list(range(length))
        assert len(blocks) <= BLOCKS
    assert causal_blocks(128) == [(0, 128)]
    assert causal_blocks(300) == [(0, 128), (128, 256), (256, 300)]


@pytest.mark.parametrize(("N", "K"), [(2, 2), (4, 2), (4, 1)])
def test_a_new_token_attends_to_the_filled_part_of_a_cache(N, K):
    q, k, v = qkv(1, 9, N, K, 16)
    filled = np.arange(9)[None] < np.array([[5], [9]])  # [B,S]

    @jax.jit
    def attend(k):
        return attend_cache(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), jnp.asarray(filled))

    expected = reference(q, k, v, causal=False, mask=filled[:, None])
    np.testing.assert_allclose(attend(k), expected, atol=1e-6, rtol=0)
    junk = np.where(filled[:, :, None, None], k, np.float32(1e4))
    np.testing.assert_array_equal(attend(k), attend(junk))


def test_xla_without_any_key_is_the_mean_and_not_nan():
    q, k, v = qkv(1, 5, 2, 2, 16)
    out = compiled(q, k, v, causal=False, mask=np.zeros((2, 1, 5), bool))
    np.testing.assert_allclose(np.asarray(out)[:, 0], np.asarray(v).mean(1), atol=1e-6, rtol=0)


def test_a_query_without_any_key_leaves_gradients_finite():
    arrays, mask = qkv(5, 5, 2, 2, 16), jnp.zeros((2, 5, 5), bool)
    for causal in (True, False):
        grads = jax.jit(jax.grad(lambda *a, c=causal: attention(*a, causal=c, mask=mask).sum(), (0, 1, 2)))(*arrays)
        for grad in grads:
            assert np.isfinite(grad).all()


@pytest.mark.parametrize("implementation", ["xla", "splash_interpret"])
def test_bfloat16_goes_in_and_out_with_a_float32_softmax(implementation):
    q, k, v = qkv(24, 24, 4, 2, 64, dtype=jnp.bfloat16)
    q = q * 32  # scores of a hundred, where a bfloat16 softmax is far off; H = 64 has the exact scale 1/8
    out = attention(q, k, v, causal=True, implementation=implementation)  # compiled, XLA would leave roundings out
    assert out.dtype == jnp.bfloat16
    want = reference(q, k, v, causal=True)
    # Products of bfloat16 are exact in float32, so two roundings are left, each off by half an eps at most:
    # that of the weights (their sum is 1, so it counts times max|v|) and that of the result (at most max|v|).
    tolerance = BF16_EPS * float(np.abs(np.asarray(v)).max())
    np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=tolerance, rtol=0)
    # The bound has teeth: rounding the scores alone breaks it.
    q, k, v = (np.asarray(x, np.float32) for x in (q, np.repeat(k, 2, 2), np.repeat(v, 2, 2)))
    scores = np.einsum("BTNH,BSNH->BNTS", q, k).astype(jnp.bfloat16).astype(np.float32) / 8
    scores = np.where(np.tri(24, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    poor = np.einsum("BNTS,BSNH->BTNH", weights / weights.sum(-1, keepdims=True), v)
    assert np.abs(poor - want).max() > 2 * tolerance


# --- the splash kernel


@pytest.mark.parametrize(
    ("T", "S", "N", "K", "H", "causal"),
    [
        (130, 130, 4, 2, 64, True),
        (130, 130, 4, 2, 64, False),
        (128, 128, 2, 2, 128, True),
        (128, 128, 2, 2, 128, False),
        (200, 200, 4, 1, 128, True),
        (300, 300, 2, 1, 64, True),  # three blocks a side; the others are one
        (130, 300, 2, 1, 64, False),
    ],
)
def test_splash_equals_xla(T, S, N, K, H, causal):
    arrays = qkv(T, S, N, K, H, B=1)
    expected = value_and_grads(*arrays, causal=causal, implementation="xla")
    assert_same(value_and_grads(*arrays, causal=causal, implementation="splash_interpret"), expected)


@pytest.mark.parametrize(
    ("B", "K", "causal", "spec"),
    [
        (4, 2, True, (("data", "fsdp"), None, "tensor")),
        (1, 1, False, ()),  # nothing divides: every device does everything, and gradients are not summed up
    ],
)
def test_splash_runs_per_device_under_a_mesh(B, K, causal, spec):
    arrays = qkv(130, 130, 4, K, 64, B=B)
    expected = value_and_grads(*arrays, causal=causal, implementation="xla")
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        actual = value_and_grads(*arrays, causal=causal, implementation="splash_interpret")
    assert actual[0].sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)), 4)
    assert_same(actual, expected)


def test_splash_inside_another_shard_map_splits_only_what_is_left():
    arrays = qkv(128, 128, 2, 2, 64)
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = jax.sharding.PartitionSpec("data")
    expected = compiled(*arrays, causal=True)

    def local(q, k, v):
        assert q.shape[0] == 1
        return attention(q, k, v, causal=True, implementation="splash_interpret")

    with jax.set_mesh(mesh):
        for manual in ({"data"}, {"data", "tensor"}):
            split = jax.shard_map(local, in_specs=rows, out_specs=rows, axis_names=manual, check_vma=False)
            np.testing.assert_allclose(jax.jit(split)(*arrays), expected, atol=1e-5, rtol=0)


# --- errors


@pytest.mark.parametrize("implementation", ["xla", "cudnn", "splash_interpret"])
def test_causal_needs_equal_lengths(implementation):
    dtype = jnp.bfloat16  # one that all of them take
    with pytest.raises(ValueError, match=r"causal needs T == S, found T=1, S=9"):
        attention(*qkv(1, 9, 2, 2, 16, dtype=dtype), causal=True, implementation=implementation)


@pytest.mark.parametrize("implementation", ["cudnn", "splash", "splash_interpret"])
def test_masked_queries_are_computed_without_a_kernel(implementation):
    arrays, mask = qkv(4, 4, 2, 2, 16, dtype=jnp.bfloat16), np.tri(4, k=1, dtype=bool)
    mask = np.stack([mask, mask])
    found = compiled(*arrays, causal=True, mask=mask, implementation=implementation)
    np.testing.assert_array_equal(found, compiled(*arrays, causal=True, mask=mask))


@pytest.mark.parametrize(
    ("implementation", "dtype", "words"),
    [
        ("cudnn", jnp.float32, "'cudnn' takes bfloat16 or float16, found float32"),
        ("splash", jnp.float16, "'splash' takes bfloat16 or float32, found float16"),
        ("splash_interpret", jnp.float16, "'splash_interpret' takes bfloat16 or float32, found float16"),
        ("flash", jnp.float32, "'flash' is none of xla, cudnn, splash, splash_interpret"),
    ],
)
def test_kernels_refuse_what_they_cannot_compute(implementation, dtype, words):
    with pytest.raises(ValueError, match=words):
        attention(*qkv(4, 4, 2, 2, 16, dtype=dtype), causal=True, implementation=implementation)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 4, 3, 16), (2, 4, 2, 16), (2, 4, 2, 16)),  # three query heads for two key heads
        ((2, 4, 2, 16), (2, 4, 2, 16), (2, 5, 2, 16)),  # v longer than k
        ((2, 4, 2, 16), (1, 4, 2, 16), (1, 4, 2, 16)),  # another batch
        ((2, 4, 2, 16), (2, 4, 2, 8), (2, 4, 2, 8)),  # another head dim
        ((4, 2, 16), (4, 2, 16), (4, 2, 16)),  # no batch
    ],
)
def test_shapes_must_fit(q, k, v):
    with pytest.raises(ValueError, match=r"expected q \[B,T,N,H\]"):
        compiled(np.zeros(q, np.float32), np.zeros(k, np.float32), np.zeros(v, np.float32), causal=False)


def test_dtypes_must_agree():
    q, k, v = qkv(4, 4, 2, 2, 16)
    with pytest.raises(ValueError, match="must share a dtype; found bfloat16, float32, float32"):
        attention(q.astype(jnp.bfloat16), k, v, causal=True)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 1, 4, 4), bool), ((1, 4, 4), bool), ((2, 4, 4), int)])
def test_mask_must_be_bool_of_batch_queries_keys(shape, dtype):
    with pytest.raises(ValueError, match=r"expected a bool mask \(2, 4, 4\)"):
        attention(*qkv(4, 4, 2, 2, 16), causal=False, mask=np.ones(shape, dtype))


@pytest.mark.parametrize(
    ("asked", "platform", "dtype", "words"),
    [
        ("flash", "gpu", "bfloat16", "'flash' is unknown: use one of auto, xla, cudnn, splash, splash_interpret"),
        ("cudnn", "cpu", "bfloat16", "'cudnn' needs a GPU, not a CPU: use 'auto'"),
        ("cudnn", "tpu", jnp.bfloat16, "'cudnn' needs a GPU, not a TPU: use 'auto'"),
        ("cudnn", "gpu", jnp.float32, "'cudnn' takes bfloat16 or float16, not float32: use 'auto'"),
        ("splash", "cpu", "float32", "'splash' needs a TPU, not a CPU: use 'auto'"),
        ("splash", "gpu", "bfloat16", "'splash' needs a TPU, not a GPU: use 'auto'"),
        ("splash", "tpu", jnp.float16, "'splash' takes bfloat16 or float32, not float16: use 'auto'"),
    ],
)
def test_what_cannot_run_says_what_to_use_instead(asked, platform, dtype, words):
    with pytest.raises(UserError, match=words):
        choose(asked, platform=platform, dtype=dtype, head_dims=(64, 128))


@pytest.mark.parametrize("head_dim", [20, 512])
def test_cudnn_refuses_heads_that_it_does_not_take(head_dim):
    with pytest.raises(UserError, match=f"takes heads of a multiple of 8 up to 256, not of {head_dim}"):
        choose("cudnn", platform="gpu", dtype="bfloat16", head_dims=(64, head_dim))


@pytest.mark.parametrize(
    ("asked", "platform", "dtype", "head_dims", "expected"),
    [
        ("auto", "cpu", "float32", (64, 128), "xla"),
        ("auto", "gpu", "bfloat16", (64, 128), "cudnn"),
        ("auto", "cuda", "float16", (64, 128), "cudnn"),
        ("auto", "gpu", "float32", (64, 128), "xla"),
        ("auto", "gpu", "bfloat16", (64, 20), "xla"),
        ("auto", "gpu", "bfloat16", (64, 256), "xla"),  # only Hopper takes them
        ("auto", "tpu", "bfloat16", (64, 128), "splash"),
        ("auto", "tpu", "float16", (64, 128), "xla"),
        ("auto", "tpu", "float32", (64, 128), "xla"),
        ("xla", "gpu", "bfloat16", (64, 128), "xla"),
        ("cudnn", "gpu", "bfloat16", (64, 256), "cudnn"),
        ("splash", "tpu", jnp.float32, (64, 128), "splash"),
        ("splash_interpret", "cpu", jnp.float32, (64, 128), "splash_interpret"),
    ],
)
def test_the_kernel_of_the_platform(asked, platform, dtype, head_dims, expected):
    assert choose(asked, platform=platform, dtype=dtype, head_dims=head_dims) == expected
