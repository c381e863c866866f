"""What tests of bad checkpoints have in common: how one is damaged, and the one error that must follow."""

import contextlib
import os

import layouts
import pytest
from layouts import state

import victor_jax

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def refused(*patterns):
    """Exactly one error, in one line, in which each of the patterns is found."""
    with pytest.raises(victor_jax.UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        caught.match(pattern)


def truncate(file, by=100):
    os.truncate(file, file.stat().st_size - by)


def rewrite(folder, net, change):
    """The folder's weights again, with `change` made to them."""
    tensors = state(net, "4.x on disk")
    layouts.write_safetensors(folder, change(tensors) or tensors)
