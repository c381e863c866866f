import jax
import jax.numpy as jnp
import pytest

from victor_jax.analysis.traced import matrix_flops

A = jax.ShapeDtypeStruct((4, 5), jnp.float32)
B = jax.ShapeDtypeStruct((5, 5), jnp.float32)
PRODUCT = 2 * 4 * 5 * 5


@pytest.mark.parametrize(("program", "products"), [
    (lambda a, b: a @ b, 1),
    (lambda a, b: jax.jit(lambda a: a @ b)(a) @ b, 2),
    (lambda a, b: jax.lax.scan(lambda a, _: (a @ b, None), a, length=3)[0], 3),
    (lambda a, b: jax.lax.scan(lambda a, _: (a @ b, a @ b @ b), a, length=3)[0], 3),  # what nobody reads is not counted
    (lambda a, b: jax.checkpoint(lambda a: a @ b)(a), 1),
    (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b), 2),
])  # fmt: skip
def test_products_are_counted_where_they_run(program, products):
    assert matrix_flops(program, A, B) == products * PRODUCT


def test_a_batched_product_counts_every_member():
    assert matrix_flops(lambda a, b: jnp.einsum("ij,jk->ijk", a, b), A, B) == 2 * 4 * 5 * 5


def test_a_loop_of_unknown_length_is_no_guess():
    with pytest.raises(AssertionError, match="while is not counted"):
        matrix_flops(lambda a, b: jax.lax.while_loop(lambda a: a[0, 0] > 0, lambda a: a @ b, a), A, B)
