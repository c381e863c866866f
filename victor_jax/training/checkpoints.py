"""What a run goes on from: Orbax checkpoints, written in the background, each of them whole or not there.

Three items per step: `params` (the trainable ones; enough to evaluate), `optimizer` (its state and the running loss)
and `meta`. A step's number is the count of steps done. Names of leaves are paths, whatever types the state is made of.
"""

import functools
import os
import secrets
import signal
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from victor_jax.errors import UserError, join_names
from victor_jax.training.optimizer import Params
from victor_jax.training.step import State
from victor_jax.weights.names import current_name

SAVE_SECONDS = 1800  # for one save in the background, before it counts as hung
ERROR_LENGTH = 200  # of tensorstore's part in a message of ours
Leaves = dict[str, Any]  # by path
flatten = functools.partial(flatten_dict, sep="/")
nest = functools.partial(unflatten_dict, sep="/")


class Checkpoints:
    """Every process makes one on the same folder and calls the same methods with the same steps."""

    def __init__(self, directory: str | Path, every: int, keep_last: int, keep_every: int = 0) -> None:
        """Saves each step that `every` divides; keeps the last `keep_last` and those that `keep_every` divides.

        0 stands for never, as `every` and `keep_every`, and for all, as `keep_last`.
        """
        self.directory = str(directory) if "://" in str(directory) else os.path.abspath(directory)
        self._every = every
        _check_shared(self.directory)
        kept: list[Any] = [checkpoint_managers.LatestN(keep_last or None)]
        if keep_every:
            kept.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,  # what a killed save left
                lightweight_initialize=True,  # else it warns of what a killed deletion left; the next save removes it
                async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS),
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        self._preemption = _Preemption()

    def latest(self) -> int | None:
        """The newest step, one that is still being written included."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def reached_preemption(self, step: int) -> bool:
        """Whether the processes agreed to leave after this step. To be asked at every step; the answer stays."""
        return self._preemption.reached(step)

    def is_due(self, step: int) -> bool:
        """Whether `save` will write this step by itself."""
        return self.reached_preemption(step) or bool(self._every and step % self._every == 0)

    def save(self, step: int, state: State, meta: dict[str, Any], force: bool = False) -> bool:
        """Begins to write the step where it is due; returns whether it did. The state may be donated afterwards."""
        if not (force or self.is_due(step)) or step in self._manager.all_steps():
            return False
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(nest(state.train)),
            optimizer=ocp.args.StandardSave(nest(_optimizer_leaves(state))),
            meta=ocp.args.JsonSave(meta),
        )
        self._written(lambda: self._manager.save(step, args=items, force=True))
        return True

    def restore(self, step: int, abstract: State) -> State:
        """The state, placed as `abstract` says: arrays, or ShapeDtypeStructs with a sharding on every leaf."""
        wanted = {"params": dict(abstract.train), "optimizer": _optimizer_leaves(abstract)}
        found = self._read(step, wanted, is_same_dtype=True)
        leaves = [found["optimizer"][name] for name in wanted["optimizer"]]
        rest = jax.tree.unflatten(jax.tree.structure(_all_but_params(abstract)), leaves)
        return State(found["params"], rest["optimizer"], rest["loss_average"])

    def restore_params(self, step: int, abstract: Params) -> Params:
        """The trainable parameters alone, in the types and the places of `abstract`."""
        return self._read(step, {"params": dict(abstract)}, is_same_dtype=False)["params"]

    def meta(self, step: int) -> dict[str, Any]:
        return self._checked(
            step, lambda: self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        )

    def wait(self) -> None:
        """Until the last save is on disk; an error of it comes up here."""
        self._written(self._manager.wait_until_finished)

    def close(self) -> None:
        self._preemption.close()
        self._written(self._manager.close)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, step: int, wanted: dict[str, Leaves], is_same_dtype: bool) -> dict[str, Leaves]:
        stored = dict(self._checked(step, lambda: self._manager.item_metadata(step)).items())
        trees = {item: flatten(stored[item].tree) for item in wanted if stored.get(item) is not None}
        written = {item: {current_name(path): path for path in tree} for item, tree in trees.items()}
        have = {item: {name: trees[item][path] for name, path in paths.items()} for item, paths in written.items()}
        if have.keys() != wanted.keys():
            raise self._unreadable(step, f"{join_names(sorted(wanted.keys() - have.keys()))} is missing")
        problems = [line for item in wanted for line in _differences(wanted[item], have[item], is_same_dtype)]
        if problems:
            raise UserError(
                f"checkpoint {step} in {self.directory} does not fit this run: {'; '.join(problems)}: go on with the "
                f"config that wrote it, or start in another folder"
            )
        items = {
            item: ocp.args.StandardRestore(nest({written[item][name]: _abstract(leaf) for name, leaf in tree.items()}))
            for item, tree in wanted.items()
        }
        found = self._checked(step, lambda: self._manager.restore(step, args=ocp.args.Composite(**items)))
        return {item: {current_name(path): leaf for path, leaf in flatten(found[item]).items()} for item in wanted}

    def _checked(self, step: int, read: Callable[[], Any]) -> Any:
        self.wait()  # a step that is being written is none yet
        try:
            return read()
        except (ValueError, KeyError, OSError) as error:
            raise self._unreadable(step, _first_line(error)) from error

    def _unreadable(self, step: int, why: str) -> UserError:
        return UserError(
            f"checkpoint {step} in {self.directory} cannot be read ({why}): delete the folder {step} to go on from the "
            f"one before"
        )

    def _written(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (ValueError, OSError) as error:
            raise UserError(f"cannot write a checkpoint to {self.directory}: {_first_line(error)}") from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Ours is asked instead. Where it says yes, Orbax subtracts the times of two checkpoints, which fails if the
        older one was found on disk by a lightweight start."""
        return False

    def close(self) -> None:
        """Orbax would leave its removal of unfinished folders running, to fail where the program ends soon."""
        removal = getattr(self, "_cleanup_tmp_directory_future", None)
        if removal is not None:
            removal.result()
        super().close()


class _Preemption:
    """SIGTERM, as a question asked at every step."""

    def __init__(self) -> None:
        # Among several processes jax's own notifier catches the signal and finds a step that none has passed.
        self._is_alone = jax.process_count() == 1
        self._is_asked = self._is_listening = False
        self._asked_at: int | None = None
        self._answer = False
        if self._is_alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
            self._is_listening = True

    def _note(self, *_: int | FrameType | None) -> None:
        self._is_asked = True
        self._restore()  # a second signal does what it did before us

    def _restore(self) -> None:
        if self._is_listening:
            signal.signal(signal.SIGTERM, self._before)
            self._is_listening = False

    def reached(self, step: int) -> bool:
        if not self._is_alone:
            return multihost_utils.reached_preemption_sync_point(step)
        if step != self._asked_at:  # else a signal between two calls would leave without a save
            self._asked_at, self._answer = step, self._is_asked
        return self._answer

    def close(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._restore()


def _check_shared(directory: str) -> None:
    """Orbax hangs or saves halves where each host has a folder of its own."""
    if jax.process_count() == 1:
        return
    folder = epath.Path(directory)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    number = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    probe = folder / f".shared-{number}"
    if jax.process_index() == 0:
        probe.write_text("")
    multihost_utils.sync_global_devices("probe written")
    sees = np.asarray(multihost_utils.process_allgather(np.bool_(probe.exists())))
    if jax.process_index() == 0:
        probe.unlink()
    if not sees.all():
        blind = [str(process) for process in np.flatnonzero(~sees)]
        raise UserError(
            f"{directory} is not one folder for all hosts: process {join_names(blind)} does not see what process 0 "
            f"writes there; use a bucket or a shared file system"
        )


def _all_but_params(state: State) -> dict[str, Any]:
    return {"optimizer": state.optimizer, "loss_average": state.loss_average}


def _optimizer_leaves(state: State) -> Leaves:
    leaves = jax.tree.leaves_with_path(_all_but_params(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _differences(wanted: Leaves, have: Leaves, is_same_dtype: bool) -> list[str]:
    """Every leaf that is missing, too many or of another shape, in one phrase per kind."""

    def described(leaf: Any) -> str:
        shape = str(list(leaf.shape))
        return f"{jax.numpy.dtype(leaf.dtype).name}{shape}" if is_same_dtype else shape

    other = [
        f"{name} (checkpoint {described(have[name])}, run {described(wanted[name])})"
        for name in sorted(wanted.keys() & have.keys())
        if described(have[name]) != described(wanted[name])
    ]
    kinds = {
        "not in the checkpoint": sorted(wanted.keys() - have.keys()),
        "not in this run": sorted(have.keys() - wanted.keys()),
        "of another shape or type" if is_same_dtype else "of another shape": other,
    }
    return [f"{kind}: {join_names(names)}" for kind, names in kinds.items() if names]


def _first_line(error: Exception) -> str:
    return textwrap.shorten((str(error) or type(error).__name__).splitlines()[0], ERROR_LENGTH)
