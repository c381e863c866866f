"""The front of all commands: what it lists, where it sends, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from victor_jax.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name, capsys):
    try:
        status = main([name, "--help"])
    except SystemExit as end:  # argparse's
        status = end.code
    assert status == 0
    assert f"victor-jax {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (["--help"], 0, ""),
    ([], 2, ""),
    (["conver"], 2, "error: unknown command 'conver'"),
])  # fmt: skip
def test_without_a_command_all_are_listed(arguments, status, said, capsys):
    assert main(arguments) == status
    written = capsys.readouterr()
    assert written.err.startswith(said)
    assert all(f"\n  {name} " in written.out + written.err for name in COMMANDS)


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "victor_jax", "convert", str(tmp_path / "absent"), str(tmp_path / "out"), "--to=hf"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_recipe_finds_its_neighbours_from_the_console_script(tmp_path):
    """Scripts do not have the current folder on their path, `python -m` has it."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "shared.py").write_text("TOPOLOGY = 'found'\n")
    (tmp_path / "recipes" / "own.py").write_text("from recipes.shared import TOPOLOGY\nraise ValueError(TOPOLOGY)\n")
    script = "import sys; sys.path = [p for p in sys.path if p]; from victor_jax.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "plan-pod", "--config=recipes/own.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "found" in done.stderr
