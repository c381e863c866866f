"""Which layers run on which positions: the plan and its steps, and one file per method."""
