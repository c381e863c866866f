import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from victor_jax.analysis import stand_ins, topology
from victor_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("text", "chips", "rented"),
    [
        ("v5e:8x8", 64, "v5litepod-64"),
        ("v5e:16x16", 256, "v5litepod-256"),
        ("v6e:2x4", 8, "v6e-8"),
        ("v5p:4x4x8", 128, "v5p-256"),
        ("v4:4x4x4", 64, "v4-128"),
        ("v5e", 64, "v5litepod-64"),
    ],
)
def test_a_slice_is_known_by_both_its_names(text, chips, rented):
    slice_ = topology.parse(text)
    assert (slice_.chips, slice_.accelerator_type) == (chips, rented)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v3:8x8", "'v3:8x8': known are v4, .*, b200; write v5e:8x8"),
        ("h200:8", "h200xN"),
        ("h200x16", "8 GPUs of a node"),
        ("v5ex8", "v5e:8x8"),
        ("v5e:8x8x8", "2 axes"),
        ("v5p:8x8", "3 axes"),
        ("v5e:8by8", "write v5e:8x8"),
        ("v5e:0x8", "v5e:8x8"),
        ("v5e:32x32", "16 chips"),
    ],
)
def test_a_slice_that_nobody_rents_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        topology.parse(text)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v4", 275e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA B200", 2250e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_goes_by_what_jax_calls_it(kind, peak):
    assert topology.peak_flops(kind) == peak


@needs_libtpu
@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:1x1", "v5e:16x16"])
def test_there_is_a_device_for_each_chip(text):
    slice_ = topology.parse(text)
    assert devices_in_new_process(text) == slice_.chips


@pytest.mark.parametrize(
    ("text", "name", "gpus"), [("h200", "h200", 1), ("h200x1", "h200", 1), ("b200x8", "b200x8", 8)]
)
def test_gpus_are_counted(text, name, gpus):
    node = topology.parse(text)
    assert (node.name, node.chips) == (name, gpus)


@pytest.mark.skipif(CUDA, reason="jax[cuda13] is installed")
def test_without_the_compiler_for_gpus_the_message_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install .*\[cuda\]"):
        stand_ins.devices(topology.parse("h200"))


@pytest.mark.skipif(not CUDA, reason="jax[cuda13] is not installed")
def test_there_is_a_device_for_each_gpu():
    assert devices_in_new_process("h100x8") == 8


def test_without_libtpu_the_message_says_what_to_install():
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    with pytest.raises(UserError, match=r"pip install .*\[tpu\]"):
        stand_ins.devices(topology.parse("v5e:2x2"))


def devices_in_new_process(text):
    """libtpu reads its environment once, when it is loaded."""
    code = f"from victor_jax.analysis import stand_ins as s, topology as t; print(len(s.devices(t.parse({text!r}))))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
