"""Checkpoint formats. Every format is read as the same thing: an architecture and a table of lazy tensors under
our own per-layer names (names.py), which know nothing of any plan."""
