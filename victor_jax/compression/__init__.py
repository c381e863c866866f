"""Which layers run on how many positions: plans, cuts, and one file per method."""
