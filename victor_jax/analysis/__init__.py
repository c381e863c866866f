"""What a plan costs, before anything runs: FLOPs, bytes, collectives, and what a chip can do."""
