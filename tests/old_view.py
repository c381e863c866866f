"""train.py on a host that sees an old state of the work folder: no step is saved, no model is written."""

import sys
from pathlib import Path
from unittest import mock

import orbax.checkpoint as ocp

import train
from victor_jax.errors import exit_status

if __name__ == "__main__":
    exists = Path.exists
    with (
        mock.patch.object(ocp.CheckpointManager, "latest_step", return_value=None),
        mock.patch.object(Path, "exists", lambda self: self.name != "model" and exists(self)),
    ):
        sys.exit(exit_status(train.command_line))
