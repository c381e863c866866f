"""On a disk that is full or read-only every command ends with one sentence and status 2, leaves nothing half-written
under a final name, and goes on from what is whole once there is room."""

import os
import subprocess

import pytest
import small_run
from disks import disk

from victor_jax import cli
from victor_jax.data.sources import open_source
from victor_jax.weights.read import open_checkpoint


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_run.write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("rows") / "data")


def only_error(text):
    """The one sentence, beside progress."""
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return error


@pytest.mark.parametrize("to", ["hf", "llava", "orbax"])
@pytest.mark.parametrize("kilobytes", [16, 500])
def test_convert_leaves_nothing_on_a_full_disk(start, tmp_path, capsys, to, kilobytes):
    command = ["convert", str(start), str(tmp_path / "disk" / "out"), f"--to={to}"]
    with disk(tmp_path / "disk", kilobytes) as change:
        assert cli.main(command) == 2
        assert "disk/out cannot be written: " in only_error(capsys.readouterr().err)
        assert not os.listdir(tmp_path / "disk")
        change("size=8m")
        assert cli.main(command) == 0
        assert len(open_checkpoint(tmp_path / "disk" / "out").tensors) > 10
        change("ro")
        assert cli.main([*command[:2], str(tmp_path / "disk" / "other"), command[3]]) == 2
        assert "Read-only file system" in only_error(capsys.readouterr().err)


@pytest.mark.parametrize("kilobytes", [4, 100, 300])
def test_pack_data_goes_on_when_there_is_room(data, tmp_path, capsys, kilobytes):
    out = tmp_path / "disk" / "out"
    command = ["pack-data", str(data / "data.json"), str(out), f"--images={data}", "--rows-per-shard=10"]
    with disk(tmp_path / "disk", kilobytes) as change:
        assert cli.main(command) == 2
        assert "disk/out cannot be written: " in only_error(capsys.readouterr().err)
        assert not out.exists()
        change("size=8m")
        assert cli.main(command) == 0
        assert os.listdir(tmp_path / "disk") == ["out"]
        assert len(open_source(out)) == 40


def test_a_run_keeps_its_last_whole_step(start, data, tmp_path):
    """The disk holds one checkpoint and not two."""
    changes = small_run.overrides(start, data, total_steps=4, checkpoint__every=2, mesh__data=1, mesh__fsdp=1)
    workdir = tmp_path / "disk" / "run"
    with disk(tmp_path / "disk", 3000):
        command, environment = small_run.command(workdir, changes), small_run.environment()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 2
        assert f"cannot write a checkpoint to {workdir / 'checkpoints'}" in only_error(done.stderr)
        assert os.listdir(workdir / "checkpoints") == ["2"]
        assert not (workdir / "model").exists()
