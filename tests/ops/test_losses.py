"""The loss in chunks equals a plain one over all logits at once, and so do its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from victor_jax.ops.losses import IGNORE, cross_entropy

B, T, D, W = 3, 11, 8, 29


@pytest.fixture(scope="module")
def given():
    """Some positions are not supervised; one target is the first word and one the last."""
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((B, T)) < 0.4, IGNORE, rng.integers(0, W, (B, T)))
    targets[0, :2], targets[1] = (0, W - 1), IGNORE
    x, head = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (D, W)))
    return x, head, targets.astype(np.int32)


def plain(x, head, targets):
    likelihood = jax.nn.log_softmax(x @ head)
    chosen = jnp.take_along_axis(likelihood, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.where(targets == IGNORE, 0.0, chosen).sum(axis=1)


@pytest.mark.parametrize("chunk", [1, 4, 11, 512])
def test_loss_and_gradients_equal_those_over_all_logits(given, chunk):
    x, head, targets = given
    weights = np.arange(1, B + 1, dtype=np.float32)  # so that each row's own loss is differentiated

    def ours(x, head):
        loss, count = cross_entropy(x, head, targets, chunk)
        return weights @ loss, (loss, count)

    def reference(x, head):
        loss = plain(x, head, targets)
        return weights @ loss, loss

    def with_gradients(loss):
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, head)

    (gradients, (loss, count)), (expected_gradients, expected) = with_gradients(ours), with_gradients(reference)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert count.tolist() == (targets != IGNORE).sum(axis=1).tolist()
    assert loss[1] == 0
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_loss_in_bfloat16_is_summed_in_float32(given):
    x, head, targets = given
    x, head = x.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    loss, _ = cross_entropy(x, head, targets, 4)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, plain(x.astype(np.float32), head.astype(np.float32), targets), rtol=1e-5)
