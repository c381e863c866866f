"""Answers: prefill, decode, and the model as users hold it."""
