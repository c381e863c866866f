"""What a run goes on from: Orbax checkpoints, written in the background, each of them whole or not there.

Three items per step: `params` (the trained ones), `optimizer` (its state and the running loss) and `meta`, which holds
a checksum of every array. A step's number is the count of steps done. Names of leaves are paths, whatever types the
state is made of.
"""

import functools
import logging
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from victor_jax.errors import UserError, join_names
from victor_jax.files import remove
from victor_jax.sharding.distributed import agreed, check_shared, gather
from victor_jax.training.checksums import checksums
from victor_jax.training.step import State
from victor_jax.weights.names import current_name

SAVE_SECONDS = 1800  # for one save in the background, before it counts as hung
ERROR_LENGTH = 200  # of tensorstore's part in a message of ours
# What TensorStore and the system say where a file cannot be read now, and may be whole.
PASSING = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Permission denied",
    "Too many",
)
Leaves = dict[str, Any]  # by path
HANDLERS: dict[str, Any] = {  # by item
    "params": ocp.StandardCheckpointHandler,
    "optimizer": ocp.StandardCheckpointHandler,
    "meta": ocp.JsonCheckpointHandler,
}
flatten = functools.partial(flatten_dict, sep="/")
nest = functools.partial(unflatten_dict, sep="/")


class Checkpoints(AbstractContextManager):
    """Every process makes one on the same folder and calls the same methods with the same steps."""

    def __init__(self, directory: str | Path, keep_last: int, keep_every: int = 0) -> None:
        """Keeps the last `keep_last` (0: all) and the steps that `keep_every` divides (0: none)."""
        self.directory = Path(directory).absolute()
        check_shared(self.directory)  # Orbax hangs or saves halves where each host has a folder of its own
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
            item_handlers={item: handler() for item, handler in HANDLERS.items()},
        )
        self._is_told_to_leave, self._handler = False, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        # Among several processes jax's own notifier catches the signal and finds a step that none has passed.
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._leave)

    def latest(self) -> int | None:
        """The newest step that process 0 sees, one that is still being written included."""
        return agreed(self._manager.latest_step())

    def reached_preemption(self, step: int) -> bool:
        """Whether SIGTERM came, and all processes leave after this step. To be asked once after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_told_to_leave

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Begins to write the step. The state may be donated afterwards."""
        meta = meta | {"checksums": jax.tree.map(int, jax.device_get(checksums(_leaves(state))))}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(nest(state.train)),
            optimizer=ocp.args.StandardSave(nest(_optimizer_leaves(state))),
            meta=ocp.args.JsonSave(meta),
        )
        self._written(lambda: self._manager.save(step, args=items, force=True))

    def restore(self, step: int, abstract: State) -> State:
        """The state, placed as `abstract` says: arrays, or ShapeDtypeStructs with a sharding on every leaf."""
        wanted = {"params": dict(abstract.train), "optimizer": _optimizer_leaves(abstract)}
        stored = self._checked(step, lambda: self._manager.item_metadata(step))
        if missing := [item for item in wanted if stored.get(item) is None]:
            raise self._damaged(step, f"{join_names(missing)} is missing")
        trees = {item: flatten(stored[item].tree) for item in wanted}
        have = {item: {current_name(path): leaf for path, leaf in tree.items()} for item, tree in trees.items()}
        problems = [line for item in wanted for line in _differences(wanted[item], have[item])]
        if problems:
            raise UserError(
                f"checkpoint {step} in {self.directory} does not fit this run: {'; '.join(problems)}: go on with the "
                f"config that wrote it, or start in another folder"
            )
        found: dict[str, Leaves] = {}
        for item, tree in trees.items():
            places = nest({path: wanted[item][current_name(path)] for path in tree})
            read = flatten(self._read(step, item, ocp.args.StandardRestore(places)))
            found[item] = {current_name(path): leaf for path, leaf in read.items()}
        moments = found["optimizer"]
        rest = jax.tree.map_with_path(lambda path, _: moments[_name(path)], _all_but_params(abstract))
        return State(found["params"], rest["optimizer"], rest["loss_average"])

    def meta(self, step: int) -> dict[str, Any]:
        found = self._read(step, "meta", ocp.args.JsonRestore())
        if not isinstance(found, dict) or not isinstance(found.get("checksums", {}), dict):
            raise self._damaged(step, "its meta is damaged")
        return found

    def newest(
        self, abstract: State, accept: Callable[[dict[str, Any]], None]
    ) -> tuple[int, State, dict[str, Any]] | None:
        """The newest step that is whole, its state and meta; None where there is no step. `accept` may refuse the meta
        before anything else is read. A damaged step is set aside under another name, with a warning: what one process
        cannot read, none of them takes."""
        damaged = 0
        while (step := self.latest()) is not None:
            found, why = None, list[str]()
            try:
                accept(meta := self.meta(step))
                found = self.restore(step, abstract), meta
            except DamagedError as error:
                why = [error.why]
            why = [one for of_process in gather(why) for one in of_process]
            if found and not why and not (why := _changed(*found)):
                return step, *found
            del found  # its memory is needed
            self._set_aside(step, why)
            damaged += 1
        if damaged:
            raise UserError(
                f"no checkpoint in {self.directory} can be read, all are set aside: the same command begins anew"
            )
        return None

    def _set_aside(self, step: int, why: list[str]) -> None:
        aside = self.directory / f"{step}.damaged"
        warnings.warn(f"checkpoint {step} is damaged ({join_names(why)}): set aside as {aside}", stacklevel=3)
        if jax.process_index() == 0:
            remove(aside)  # of the same step, damaged before
            self._written(lambda: (self.directory / str(step)).rename(aside))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Until the last save is on disk; an error of it comes up here."""
        self._written(self._manager.wait_until_finished)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._handler)
        elif error is not None:
            return  # Orbax would wait for the other processes, which do not know yet that this one leaves
        try:
            self._written(self._manager.close)
        finally:
            if error is not None:  # it may have come in the middle of a save
                for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    remove(unfinished)

    def _leave(self, *_: object) -> None:
        self._is_told_to_leave = True
        signal.signal(signal.SIGTERM, self._handler)  # a second signal does what it did before us

    def _checked(self, step: int, read: Callable[[], Any]) -> Any:
        self.wait()  # a step that is being written is none yet
        try:
            return read()
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # no room for it here
        except Exception as error:  # of damaged files its readers raise nearly anything
            damaged = self._damaged(step, _first_line(error))
            if any(word in str(error) for word in PASSING):
                raise UserError(str(damaged)) from error
            raise damaged from error

    def _damaged(self, step: int, why: str) -> "DamagedError":
        return DamagedError(f"checkpoint {step} in {self.directory} cannot be read ({why})", why)

    def _read(self, step: int, item: str, wanted: Any) -> Any:
        """By this process alone: among Orbax's own, one that fails leaves the others waiting for it."""
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"read_{me}")

        def read() -> Any:
            handler = HANDLERS[item](multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                return checkpointer.restore(self.directory / str(step) / item, args=wanted)

        return self._checked(step, read)

    def _written(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (ValueError, OSError) as error:
            raise UserError(f"cannot write a checkpoint to {self.directory}: {_first_line(error)}") from error


class DamagedError(UserError):
    """A step that cannot be read, and why."""

    def __init__(self, sentence: str, why: str):
        super().__init__(sentence)
        self.why = why


def _changed(state: State, meta: dict[str, Any]) -> list[str]:
    """Arrays that are not what was saved."""
    found, expected = jax.device_get(checksums(_leaves(state))), meta.get("checksums", {})
    return [path for path in expected if path in found and int(found[path]) != expected[path]]


def print_no_tracebacks() -> None:
    """For a command that prints the error of a failed write itself: Orbax logs it too, asyncio the tasks that nobody
    waited for, and TensorStore what its writes find when Orbax has given up."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    others = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            others(found)

    sys.unraisablehook = hook


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


def _leaves(state: State) -> Leaves:
    params = {f"params/{path}": leaf for path, leaf in state.train.items()}
    return params | {f"optimizer/{name}": leaf for name, leaf in _optimizer_leaves(state).items()}


def _all_but_params(state: State) -> dict[str, Any]:
    return {"optimizer": state.optimizer, "loss_average": state.loss_average}


def _optimizer_leaves(state: State) -> Leaves:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(_all_but_params(state))}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _differences(wanted: Leaves, have: Leaves) -> list[str]:
    """Every leaf that is missing, too many or of another shape or type, in one phrase per kind."""

    def described(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    other = [
        f"{name} (checkpoint {described(have[name])}, run {described(wanted[name])})"
        for name in sorted(wanted.keys() & have.keys())
        if described(have[name]) != described(wanted[name])
    ]
    kinds = {
        "not in the checkpoint": sorted(wanted.keys() - have.keys()),
        "not in this run": sorted(have.keys() - wanted.keys()),
        "of another shape or type": other,
    }
    return [f"{kind}: {join_names(names)}" for kind, names in kinds.items() if names]


def _first_line(error: Exception) -> str:
    return textwrap.shorten((str(error) or type(error).__name__).splitlines()[0], ERROR_LENGTH)
