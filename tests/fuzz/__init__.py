"""Hostile and careless input of every kind: a short, seeded part in `make test`, hours in `make fuzz MINUTES=…`.

One property (`property.py`) holds for all surfaces; each surface is a module that says what is tried and how.
"""

import tempfile

from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(tempfile.gettempdir() + "/hypothesis")  # nothing in the tree
