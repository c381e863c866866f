"""What the numbers in the docs come from. Imports only jax, flax, optax, numpy and the model code; but for
`study`, which runs our commands."""
