"""The training step and what surrounds it: optimizer, checkpoints, metrics, the clock."""
