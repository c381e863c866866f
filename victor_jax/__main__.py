"""python -m victor_jax COMMAND: the same as victor-jax COMMAND."""

import sys

from victor_jax.cli import main

sys.exit(main())
