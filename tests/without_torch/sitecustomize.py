"""Processes that train find no torch, as on most machines of users: transformers would take seconds to import it."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
