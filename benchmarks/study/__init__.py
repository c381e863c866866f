"""Which method keeps what of an image, how surely, and at what cost: docs/study.md."""
