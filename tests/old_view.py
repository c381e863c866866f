"""train.py on a host that sees an old state of the work folder: no step is saved, and a model of before is there."""

import sys
from unittest import mock

import orbax.checkpoint as ocp

import train
from victor_jax.errors import exit_status
from victor_jax.training import outputs

if __name__ == "__main__":
    with (
        mock.patch.object(ocp.CheckpointManager, "latest_step", return_value=None),
        mock.patch.object(outputs, "has_model", return_value=True),
    ):
        sys.exit(exit_status(train.command_line))
