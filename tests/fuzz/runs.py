"""Folders of runs, with anything in them damaged. What a run goes on from is what was saved, bit by bit."""

import functools
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from fuzz.property import REFUSALS, Surface
from fuzz.strange import Change, Damage, changed, changes, damaged, damages, dumps
from victor_jax.training import outputs
from victor_jax.training.checkpoints import Checkpoints
from victor_jax.training.lock import owned
from victor_jax.training.metrics import Metrics
from victor_jax.training.step import State

CONFIG = {"seed": 1, "micro_batches": 2, "data": {"path": "x"}, "optimizer": {"learning_rate": 0.1}}
META = {"data": "digest", "bad_rows": [[3, "why"]]}
LAST = 2


def state(step: int) -> State:
    leaves = {"projector/kernel": jnp.arange(6.0).reshape(2, 3) + step, "compression/registers": jnp.ones(4) * step}
    return State(leaves, {"mu": jnp.full(3, 0.5 * step)}, jnp.float32(step))


@functools.cache
def run() -> tuple[tempfile.TemporaryDirectory, list[Path]]:
    """A run that was stopped after two steps, and its files."""
    home = tempfile.TemporaryDirectory(prefix="fuzz-run-")
    folder = Path(home.name)
    outputs.keep_config(folder, CONFIG)
    (folder / "lock").touch()
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(LAST)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    with Checkpoints(folder / "checkpoints", 0) as checkpoints:
        for step in range(1, LAST + 1):
            checkpoints.save(step, state(step), META)
    return home, sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Harm:
    where: int  # a file of the folder
    kind: str
    changes: list[Change]
    damage: list[Damage]

    def to(self, folder: Path) -> None:
        files = run()[1]
        # Every third falls on the few that are not Orbax's.
        own = [file for file in files if file.parent == Path() or "meta" in file.parts]
        file = folder / (own[self.where % len(own)] if self.where % 3 == 0 else files[self.where % len(files)])
        if not file.is_file():
            return
        data = file.read_bytes()
        match self.kind:
            case "change":
                try:
                    data = dumps(changed(json.loads(data), self.changes)).encode("utf-8", "surrogatepass")
                except (ValueError, RecursionError):  # what another harm left
                    data = damaged(data, self.damage)
            case "damage":
                data = damaged(data, self.damage)
        file.unlink()
        if self.kind == "folder":
            file.mkdir()
        elif self.kind == "no folder":
            shutil.rmtree(file.parent)
            file.parent.touch()
        elif self.kind != "gone":
            file.write_bytes(data)


class Runs(Surface):
    name, short = "run-folders", 25
    inputs = st.lists(
        st.builds(
            Harm,
            st.integers(0, 1000),
            st.sampled_from(("change", "change", "damage", "damage", "gone", "folder", "no folder")),
            changes,
            damages.filter(bool),
        ),
        min_size=1,
        max_size=2,
    )

    def prepare(self, given, room):
        shutil.copytree(run()[0].name, room / "run")
        for harm in given:
            if (room / "run").is_dir():
                harm.to(room / "run")
        return room / "run"

    def attempt(self, prepared, room):
        """As train.py begins."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step that is set aside
            workdir = outputs.make_workdir(prepared)
            with owned(workdir):
                outputs.parts_before(workdir)
                outputs.keep_config(workdir, CONFIG)
                with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
                    saved = checkpoints.newest(
                        jax.tree.map(placed, state(0)), lambda meta: outputs.check_data(meta, META["data"], workdir)
                    )
                    step, found, meta = saved or (0, None, META)
                    bad_rows = [(row, reason) for row, reason in meta["bad_rows"]]
                    with Metrics(workdir, 10, True, step):
                        pass
                    outputs.has_model(workdir)
        return step, found, bad_rows

    def compare(self, prepared, result):
        if isinstance(result, REFUSALS):
            return
        step, found, bad_rows = result
        assert all(isinstance(row, int) and isinstance(reason, str) for row, reason in bad_rows)
        if found is not None:
            same = jax.tree.map(np.array_equal, found, state(step))
            assert all(jax.tree.leaves(same)), f"step {step} came back changed"
        steps = [json.loads(line)["step"] for line in (prepared / "metrics.jsonl").read_text().splitlines()]
        assert all(number < step for number in steps)


def placed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
