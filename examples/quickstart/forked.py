"""Imported by the process that commands are forked from, and by nothing else: what it imports, they need not.

Signals to the driver's process group are for the driver, which hands them on; so this process leaves that group first.
"""

import importlib
import os

SHARED = ("train", "eval", "transformers.models.auto.tokenization_auto")  # and what these import

os.setsid()
for name in SHARED:
    importlib.import_module(name)
