import jax
import jax.numpy as jnp

from victor_jax.analysis.traced import matrix_flops


def test_products_that_no_output_needs_are_left_out():
    """A score of the layer ahead traces that whole layer, of which it needs the queries and keys."""

    def layer(x):
        queries = x @ x
        return queries, queries @ x

    matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert matrix_flops(lambda x: jax.jit(layer)(x)[0], matrix) == 2 * 8**3
